"""Cooperative stop: a file asks the workers of one run to leave at their next step, so that nothing ever has to be killed."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fat_ray.errors import RecordError
from fat_ray.events import Status

POLL_INTERVAL_S = 0.25


def stop_file(directory: str | Path, run: str) -> Path:
    """Where a stop of the run is asked for: ``<directory>/control/<run>.stop``; its content is the status to end with."""
    return Path(directory) / "control" / f"{run}.stop"


def request_stop(directory: str | Path, run: str, status: Status) -> None:
    """Asks the workers of a run to end it; readers see the whole request or none. A later request replaces an earlier one.

    Args:
        directory: The study's directory.
        run: Id of the run, which need not have started.
        status: What the run ends with: `Status.PRUNED` or `Status.STOPPED`.
    """
    target = stop_file(directory, run)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{run}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(status.value)
    Path(temporary).replace(target)


def stop_requested(directory: str | Path, run: str) -> Status | None:
    """The status that the run is asked to end with, or None.

    Raises:
        RecordError: The stop file holds something else, so it was not written by `request_stop`.
    """
    path = stop_file(directory, run)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    if text not in (Status.PRUNED, Status.STOPPED):
        raise RecordError(f"{path} holds {text[:40]!r}; a stop file holds 'pruned' or 'stopped'")
    return Status(text)


def clear_stop(directory: str | Path, run: str) -> None:
    """Withdraws a request, if there is one."""
    stop_file(directory, run).unlink(missing_ok=True)


class StopPoll:
    """What the engine asks at each step; looks at the file a few times per second only, and remembers what it saw."""

    def __init__(self, directory: str | Path, run: str, interval_s: float = POLL_INTERVAL_S) -> None:
        self._directory = directory
        self._run = run
        self._interval_s = interval_s
        self._next_look_s = float("-inf")
        self._status: Status | None = None

    def __call__(self) -> Status | None:
        """The status to end with, or None to go on."""
        now_s = time.monotonic()
        if self._status is None and now_s >= self._next_look_s:
            self._status = stop_requested(self._directory, self._run)
            self._next_look_s = now_s + self._interval_s
        return self._status


@contextmanager
def stop_on_interrupt(directory: str | Path, run: str) -> Iterator[threading.Event]:
    """Makes the first Ctrl-C ask the run to stop; the second raises at once. The event tells that there was one.

    Outside the main thread, which alone hears signals, it does nothing.

    Raises:
        KeyboardInterrupt: There was a Ctrl-C; raised when the body is done, so that the run's last record is written.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        request_stop(directory, run, Status.STOPPED)

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted.is_set():
        raise KeyboardInterrupt
