"""All who look at a study while it runs: the console, a listener, others who see its directory, and the guards of its disk."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from ray.tune import Callback

from fat_ray.errors import FatRayError, RecordError
from fat_ray.records.driver import DONE, FAILED, STOPPED
from fat_ray.records.files import free_bytes, mebibytes
from fat_ray.records.manifest import MIN_FREE_BYTES
from fat_ray.records.redact import scrub
from fat_ray.spec.study import StudySpec
from fat_ray.study.announce import Announcer, OnEvent
from fat_ray.study.beacon import Beacon
from fat_ray.study.callbacks import Keeper, Shares
from fat_ray.study.console import ConsoleCallback, notebook
from fat_ray.study.disk import DiskGuard, check_space, space
from fat_ray.study.ledger import Ledger
from fat_ray.study.plan import Plan
from fat_ray.study.retention import slim_checkpoints


class Watch:
    """Made by `watched`.

    Attributes:
        callbacks: What Tune shall call, in this order.
    """

    def __init__(self, spec: StudySpec, directory: Path, ledger: Ledger, *, quiet: bool, on_event: OnEvent | None) -> None:
        self._spec, self._directory, self._ledger = spec, directory, ledger
        page = None if quiet or on_event else notebook()
        self._console = ConsoleCallback(spec, ledger, quiet=quiet, plain=on_event is not None, show_html=page)
        self._announcer = Announcer(spec, directory, ledger, on_event) if on_event else None
        self._beacon = Beacon(directory, ledger)
        self._begun = False
        self.callbacks: list[Callback] = []

    def open(self) -> None:
        """Before the cluster is there."""
        self._beacon.start()

    def begin(self, plan: Plan, weights_bytes: int) -> None:
        """The study is about to start.

        Args:
            plan: How it uses the cluster.
            weights_bytes: The state dict of its model.

        Raises:
            OutputError: There is too little space for its checkpoints.
        """
        spec, directory, ledger = self._spec, self._directory, self._ledger
        need = space(spec, weights_bytes, plan.concurrency)
        check_space(directory, need)
        guard = DiskGuard(directory, ledger, need, partial(slim_checkpoints, directory, spec, ledger))
        self.callbacks = [Shares(directory, ledger), Keeper(directory, spec, ledger), guard, self._console]
        if self._announcer is not None:
            self.callbacks.append(self._announcer)
            self._announcer.begin(plan)
        self._begun = True

    def close(self, failure: BaseException | None) -> None:
        """The study is over, or was not begun."""
        state, detail = _end(self._ledger, failure)
        self._console.close(state, detail)
        if self._announcer is not None and self._begun:
            self._announcer.end(state, detail)
        self._beacon.stop(state if self._begun else None, detail)


def _end(ledger: Ledger, failure: BaseException | None) -> tuple[str, str]:
    """How the study ended, and why."""
    if isinstance(failure, KeyboardInterrupt):
        return STOPPED, "interrupted"
    if failure is not None:
        return FAILED, scrub(f"{type(failure).__name__}: {failure}".partition("\n")[0])
    if ledger.failure:
        return FAILED, ledger.failure
    if ledger.close is None:
        return DONE, ""
    return STOPPED if ledger.close.may_go_on else DONE, str(ledger.close)


@contextmanager
def watched(spec: StudySpec, directory: Path, ledger: Ledger, *, quiet: bool, on_event: OnEvent | None = None) -> Iterator[Watch]:
    """Within, the study is watched; at the end everybody hears how it ended.

    Args:
        spec: The study.
        directory: Its directory.
        ledger: Its trials.
        quiet: Show nothing on the console.
        on_event: Told what happens, see `fat_ray.study.announce`; the console then shows plain lines.

    Raises:
        RecordError: The body failed because the disk was full.
    """
    watch = Watch(spec, directory, ledger, quiet=quiet, on_event=on_event)
    with _heard(ledger):
        watch.open()
        try:
            yield watch
        except BaseException as raised:
            error = raised if isinstance(raised, FatRayError) else _explained(raised, directory)
            watch.close(error)
            if error is raised:
                raise
            raise error from raised
        watch.close(None)


def _explained(error: BaseException, directory: Path) -> BaseException:
    """What a full disk breaks, in Ray or elsewhere, says anything but that the disk is full."""
    free = free_bytes(directory)
    if not isinstance(error, Exception) or free >= MIN_FREE_BYTES // 8:
        return error
    return RecordError(
        f"the disk of {directory} is full: {mebibytes(free)} free. What was recorded is whole; make space, then fat-ray resume "
        f"{directory} goes on"
    )


class _Noted(logging.Handler):
    """Enters what this package warns of into the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(logging.WARNING)
        self._ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        """One warning."""
        self._ledger.warn(scrub(record.getMessage()))


@contextmanager
def _heard(ledger: Ledger) -> Iterator[None]:
    """Within, warnings of this package go to the ledger, from where each is shown once, instead of to the terminal.

    A log that cannot be written, say for want of space, does not fill the terminal with tracebacks either.
    """
    logger, handler = logging.getLogger("fat_ray"), _Noted(ledger)
    before, show, loud = logger.propagate, warnings.showwarning, logging.raiseExceptions

    def note(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        if "fat_ray" in Path(filename).parts:
            ledger.warn(scrub(str(message)))
        else:
            show(message, category, filename, lineno, file, line)

    logger.addHandler(handler)
    logger.propagate = logging.raiseExceptions = False
    warnings.showwarning = note
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, warnings.showwarning, logging.raiseExceptions = before, show, loud
