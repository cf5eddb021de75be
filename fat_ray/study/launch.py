"""A whole study, from its specification to its outcome."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fat_ray.errors import InputError
from fat_ray.events import Status
from fat_ray.records.driver import DONE
from fat_ray.records.manifest import read_manifest, read_study
from fat_ray.records.redact import scrub
from fat_ray.spec.study import StudySpec, as_json, num_trials
from fat_ray.study.beacon import Beacon
from fat_ray.study.daemons import tied_to_servers
from fat_ray.study.environment import prepare, resolve_address
from fat_ray.study.ledger import Close, Ledger
from fat_ray.study.opening import Opened, opened, reopened
from fat_ray.study.plan import plan
from fat_ray.train.lease import read_driver
from fat_ray.train.signals import Listener, interruptible, listening

if TYPE_CHECKING:
    from fat_ray.study.announce import OnEvent


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
        stopped_by: The signal that ended the study; None when none did.
    """

    directory: Path
    runs: tuple[RunOutcome, ...]
    closed: Close | None
    notes: tuple[str, ...]
    failure: str = ""
    stopped_by: int | None = None

    @property
    def failed(self) -> int:
        """Runs that failed or diverged."""
        return sum(run.status in (Status.FAILED, Status.DIVERGED) for run in self.runs)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or a signal ended the study."""
        return self.closed is Close.INTERRUPTED


def launch(
    spec: StudySpec,
    *,
    text: str,
    directory: str | Path,
    address: str | None = None,
    quiet: bool = False,
    on_event: "OnEvent | None" = None,
    command: tuple[str, ...] = (),
) -> StudyOutcome:
    """Runs a study and returns when it is over; a run that fails does not stop it, the first Ctrl-C or SIGTERM ends it in good order.

    Args:
        spec: The study.
        text: The study file as written.
        directory: The study's own directory; absent or empty. On a cluster, all nodes must reach it under the same path.
        address: ``host:port`` of a Ray cluster; None: a local one.
        quiet: Show no progress.
        on_event: Told what happens as it happens, see `fat_ray.study.announce`.
        command: Arguments of the command line, for the manifest.

    Raises:
        InputError: The data, the directory, W&B or the cluster cannot be used; nothing was started.
        Interrupted: At the second signal, and at the first while nothing has been started yet.
    """
    directory = Path(directory).absolute()
    ledger = Ledger(num_trials(as_json(spec)))
    with interruptible(), opened(spec, text, directory, command) as ready:
        _run(spec, directory, ledger, ready, resolve_address(address), quiet=quiet, on_event=on_event)
    return _outcome(directory, ledger)


def resume(
    directory: str | Path, *, address: str | None = None, quiet: bool = False, on_event: "OnEvent | None" = None
) -> StudyOutcome | None:
    """Goes on with a study whose driver was interrupted or killed, and returns when it is over.

    What is known of it comes from its manifest, its records and its journal. Runs go on from their newest checkpoint under the same ids;
    what ended for good (completed, pruned, diverged, failed, stopped for a budget) stays as it is.

    Args:
        directory: The study's own directory.
        address: As for `launch`.
        quiet: As for `launch`.
        on_event: As for `launch`.

    Returns:
        None when the study was complete already, or a budget of it used up.

    Raises:
        InputError: The data, W&B or the cluster cannot be used, another process is at work in the directory, or it holds a single run;
            nothing was started.
        RecordError: The directory holds no study.
        Interrupted: As for `launch`.
    """
    directory = Path(directory).absolute()
    manifest = read_manifest(directory)
    if manifest.kind == "run":
        raise InputError(f"{directory} holds a single run, made by fat-ray run: fat-ray resume {directory} goes on with it")
    spec = read_study(manifest)
    with interruptible(), reopened(spec, directory) as ready:
        for left in (path for path in (directory / "control").iterdir() if path.is_dir()):
            shutil.rmtree(left, ignore_errors=True)  # what Ray Train kept there
        ledger = Ledger(num_trials(as_json(spec)), started_s=time.monotonic() - read_driver(directory).worked_s)
        is_over = _run(spec, directory, ledger, ready, resolve_address(address), quiet=quiet, on_event=on_event)
    return None if is_over else _outcome(directory, ledger)


def _run(
    spec: StudySpec, directory: Path, ledger: Ledger, ready: Opened, address: str | None, *, quiet: bool, on_event: "OnEvent | None"
) -> bool:
    """Runs what is left to run; whether that was nothing."""
    prepare(address)
    # Ray reads its environment when it is imported, so only now.
    from fat_ray.study.cluster import connect
    from fat_ray.study.sharing import require_shared
    from fat_ray.study.tune import Course, run_trials
    from fat_ray.study.watch import watched
    from fat_ray.train.run import train_environment

    with ray_log(directory / "logs" / "ray.log"):
        course = Course(spec, directory, ledger)
        if course.is_over(time.monotonic()):
            course.tidy_up(ready.mirror)
            Beacon(directory, ledger).stop(DONE, str(ledger.close or ""))
            return True
        with (
            watched(spec, directory, ledger, quiet=quiet, on_event=on_event) as watch,
            connect(address, train_environment(spec.run.train)) as nodes,
            _signals(ledger) as listener,
            tied_to_servers(directory, lambda: listener.stopped_by),
        ):
            how = plan(spec, nodes)
            if len(nodes) > 1:
                require_shared(directory)
            watch.begin(how, ready.weights_bytes)
            run_trials(course, how, watch.callbacks, listener, ready.mirror)
    return False


@contextmanager
def _signals(ledger: Ledger) -> Iterator[Listener]:
    """Within, the first Ctrl-C or SIGTERM closes the study, so that its trials end in good order, and SIGUSR1 makes them save."""

    def close() -> None:
        ledger.close = Close.INTERRUPTED

    def save() -> None:
        ledger.is_save_asked = True

    with listening(close, save) as listener:
        yield listener
    ledger.stopped_by = listener.stopped_by


def _outcome(directory: Path, ledger: Ledger) -> StudyOutcome:
    ended = [
        RunOutcome(run, trial.name, status, trial.reason if status is trial.status else "")
        for trial in ledger.trials
        for run, status in trial.ends.items()
    ]
    return StudyOutcome(directory, tuple(ended), ledger.close, tuple(ledger.notes), ledger.failure, ledger.stopped_by)


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
