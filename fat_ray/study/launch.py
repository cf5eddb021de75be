"""A whole study, from its specification to its outcome."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fat_ray.events import Status
from fat_ray.records.redact import scrub
from fat_ray.records.wandb import WandbMirror
from fat_ray.spec.study import StudySpec, as_json, num_trials
from fat_ray.study.environment import prepare, resolve_address
from fat_ray.study.ledger import Close, Ledger
from fat_ray.study.opening import opened
from fat_ray.study.plan import plan


@dataclass(frozen=True)
class RunOutcome:
    """How one run ended.

    Attributes:
        run: Its id.
        trial: Name of its trial.
        status: How it ended.
        reason: Why it did not complete; empty when it did.
    """

    run: str
    trial: str
    status: Status
    reason: str


@dataclass(frozen=True)
class StudyOutcome:
    """How a study ended.

    Attributes:
        directory: Where everything lies.
        runs: All runs that started, in the order in which they were handed out.
        closed: Why the study ended before its budget of trials was used; None when it did not.
        notes: What the user should know, such as a baseline that was skipped.
        failure: Why the study as a whole has no result; empty when it has one.
    """

    directory: Path
    runs: tuple[RunOutcome, ...]
    closed: Close | None
    notes: tuple[str, ...]
    failure: str = ""

    @property
    def failed(self) -> int:
        """Runs that failed or diverged."""
        return sum(run.status in (Status.FAILED, Status.DIVERGED) for run in self.runs)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or a signal ended the study."""
        return self.closed is Close.INTERRUPTED


def launch(
    spec: StudySpec, *, text: str, directory: str | Path, address: str | None = None, quiet: bool = False, command: tuple[str, ...] = ()
) -> StudyOutcome:
    """Runs a study and returns when it is over; a run that fails does not stop it, the first Ctrl-C ends it in good order.

    Args:
        spec: The study.
        text: The study file as written.
        directory: The study's own directory; absent or empty. On a cluster, all nodes must reach it under the same path.
        address: ``host:port`` of a Ray cluster; None: a local one.
        quiet: Show no progress.
        command: Arguments of the command line, for the manifest.

    Raises:
        InputError: The data, the directory, W&B or the cluster cannot be used; nothing was started.
        KeyboardInterrupt: At the second Ctrl-C.
    """
    directory = Path(directory).absolute()
    ledger = Ledger(num_trials(as_json(spec)))
    with opened(spec, text, directory, command) as mirror:
        _run(spec, directory, ledger, mirror, resolve_address(address), quiet=quiet)
    return _outcome(directory, ledger)


def _run(spec: StudySpec, directory: Path, ledger: Ledger, mirror: WandbMirror, address: str | None, *, quiet: bool) -> None:
    prepare(address)
    # Ray reads its environment when it is imported, so only now.
    from fat_ray.study.cluster import connect
    from fat_ray.study.console import ConsoleCallback
    from fat_ray.study.tune import run_trials

    console = ConsoleCallback(spec, ledger, quiet=quiet)
    with connect(address) as nodes, ray_log(directory / "logs" / "ray.log"), interruptible(ledger):
        how = plan(spec, nodes)
        try:
            run_trials(spec, directory, ledger, how, console, mirror)
        finally:
            console.close()


def _outcome(directory: Path, ledger: Ledger) -> StudyOutcome:
    ended = [
        RunOutcome(run, trial.name, status, trial.reason if status is trial.status else "")
        for trial in ledger.trials
        for run, status in trial.ends.items()
    ]
    return StudyOutcome(directory, tuple(ended), ledger.close, tuple(ledger.notes), ledger.failure)


@contextmanager
def interruptible(ledger: Ledger) -> Iterator[None]:
    """Within, the first Ctrl-C or SIGTERM closes the study, so that its trials end in good order; the second raises KeyboardInterrupt."""

    def close(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the interface of signal
        if ledger.close is Close.INTERRUPTED:
            raise KeyboardInterrupt
        ledger.close = Close.INTERRUPTED

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, close) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Scrubbed(logging.Formatter):
    """A log line with its traceback, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return scrub(super().format(record))


@contextmanager
def ray_log(path: Path) -> Iterator[None]:
    """Within, what Ray and Optuna log in this process goes to a file instead of the terminal.

    So does what is printed: Ray prints the deaths of workers to stdout, which belongs to machine-readable output.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Scrubbed("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "optuna")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        with redirect_stdout(handler.stream):
            yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
