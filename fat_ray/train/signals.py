"""What signals ask a process for that trains: SIGINT (Ctrl-C) and SIGTERM to end in good order, a second one at once, SIGUSR1 to save."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fat_ray.errors import Interrupted
from fat_ray.events import Status
from fat_ray.train.stop import request_save, request_stop

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SIGNALS = (*STOP_SIGNALS, signal.SIGUSR1)


class Listener:
    """Hears signals; only the main thread does, elsewhere nothing is heard.

    Args:
        on_stop: Called at the first signal to end.
        on_save: Called at each SIGUSR1.

    Attributes:
        stopped_by: The signal that asked to end; None while there was none.
    """

    def __init__(self, on_stop: Callable[[], None], on_save: Callable[[], None]) -> None:
        self._on_stop, self._on_save = on_stop, on_save
        self.stopped_by: signal.Signals | None = None

    def listen(self) -> None:
        """Takes the place of whoever listens now: Ray Tune takes SIGUSR1 for itself when it starts."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._stop)
            signal.signal(signal.SIGUSR1, lambda *_: self._on_save())

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.stopped_by is not None:
            raise Interrupted(number, at_once=True)
        self.stopped_by = signal.Signals(number)
        self._on_stop()


@contextmanager
def listening(on_stop: Callable[[], None], on_save: Callable[[], None]) -> Iterator[Listener]:
    """Listens while the body runs, then leaves signals to whoever had them before.

    Raises:
        Interrupted: At the second signal to end, wherever the main thread is.
    """
    listener = Listener(on_stop, on_save)
    if threading.current_thread() is not threading.main_thread():
        yield listener
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        listener.listen()
        yield listener
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def run_signals(directory: str | Path, run: str) -> Iterator[Listener]:
    """Turns signals into requests to one run.

    Raises:
        Interrupted: There was a signal to end: raised when the body is done, so that the run's last record is written, or at the second
            one.
    """
    with listening(lambda: request_stop(directory, run, Status.STOPPED), lambda: request_save(directory, run)) as listener:
        yield listener
    if listener.stopped_by is not None:
        raise Interrupted(listener.stopped_by)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM raises as Ctrl-C does and SIGUSR1 is ignored (also by programs started here), until somebody listens more closely."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
