"""What the driver does while Tune runs trials: notes, passes on requests, keeps the W&B mirror up to date, removes what nobody needs."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from fat_ray.errors import RecordError, SupersededError
from fat_ray.events import Status
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.records.reader import part_number, parts, read_part, read_table
from fat_ray.spec.study import BudgetSpec, StudySpec
from fat_ray.study.ledger import Close, Cost, Ledger, Trial
from fat_ray.study.retention import prune_checkpoints
from fat_ray.train.lease import Driver, is_superseded, read_driver, write_driver
from fat_ray.train.stop import request_save, request_stop

NOTE_S = 5.0
"""Time between two notes of how long the study has been worked on: what a killed driver forgets at most."""


class Supervisor(Callback):  # type: ignore[misc]
    """Notes the start of trials and the time that was worked; asks trials to save, and when the study is to end, to stop.

    Args:
        ledger: The study's trials.
        directory: The study's directory.
        budget: What the study may use.
        listen: Called when Tune has started, which has taken a signal for itself.
    """

    def __init__(self, ledger: Ledger, directory: Path, budget: BudgetSpec, listen: Callable[[], None] = lambda: None) -> None:
        self._ledger, self._directory, self._budget, self._listen = ledger, directory, budget, listen
        self._driver = read_driver(directory).number
        self._next_note_s = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of its callbacks, which is never read."""
        return {}

    def setup(self, *args: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Listens to signals again."""
        self._listen()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Notes the time."""
        self._ledger.of(trial.trial_id).started_s = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Tune calls this about ten times per second.

        Raises:
            SupersededError: Another driver works on the study, on a file system without locks.
        """
        now_s = time.monotonic()
        if now_s >= self._next_note_s:
            self._note_work(now_s)
        if self._ledger.is_save_asked:
            self._save_all()
        if self._ledger.close is None:
            why = used_up(self._budget, self._ledger, now_s)
            if why is not None:
                self._ledger.end_early(why)
        if self._ledger.close is not None:
            self._stop_all()

    def _note_work(self, now_s: float) -> None:
        if is_superseded(self._directory, self._driver):
            raise SupersededError(f"another process works on the study in {self._directory}; this one left it")
        write_driver(self._directory, Driver(self._driver, now_s - self._ledger.started_s))
        self._next_note_s = now_s + NOTE_S

    def _save_all(self) -> None:
        self._ledger.is_save_asked = False
        for trial in self._ledger.handed_out():
            if trial.started_s is not None and trial.seeds_done < len(trial.jobs):
                request_save(self._directory, trial.jobs[trial.seeds_done].run)

    def _stop_all(self) -> None:
        for trial in self._ledger.handed_out():
            if trial.asked_to_stop is not Status.STOPPED:
                trial.asked_to_stop = Status.STOPPED
                for job in trial.jobs:
                    request_stop(self._directory, job.run, Status.STOPPED)


def used_up(budget: BudgetSpec, ledger: Ledger, now_s: float) -> Close | None:
    """Which budget of the whole study is used up; None while there is some of each."""
    spent = Cost() if budget.worker_s is None and budget.flops is None else ledger.spent  # a sum over all trials
    limits = (
        (Close.OUT_OF_TIME, now_s - ledger.started_s, None if budget.hours is None else budget.hours * 3600),
        (Close.OUT_OF_WORK, spent.worker_s, budget.worker_s),
        (Close.OUT_OF_FLOPS, spent.flops, budget.flops),
    )
    return next((why for why, used, limit in limits if limit is not None and used >= limit), None)


class Mirror(Callback):  # type: ignore[misc]
    """Drives the W&B mirror from the records; it never fails the study.

    Args:
        mirror: The mirror of this study.
        ledger: The study's trials.
    """

    def __init__(self, mirror: WandbMirror, ledger: Ledger) -> None:
        self._mirror, self._ledger = mirror, ledger

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of its callbacks; open W&B runs do not belong there."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Takes back what an earlier driver mirrored of runs that go on now."""
        ours = self._ledger.of(trial.trial_id)
        for job in ours.jobs[ours.seeds_done :]:
            if job.resume:
                self._mirror.begin_anew(job.run)

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Mirrors what is new."""
        for job in self._ledger.of(trial.trial_id).jobs:
            self._mirror.advance(job.run)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Mirrors the rest."""
        self._finish(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Mirrors the rest."""
        self._finish(trial)

    def _finish(self, trial: TuneTrial) -> None:
        for job in self._ledger.of(trial.trial_id).jobs:
            self._mirror.finish(job.run)


class Keeper(Callback):  # type: ignore[misc]
    """Removes checkpoints that nobody needs once a trial has ended, see `fat_ray.study.retention`.

    Args:
        directory: The study's directory.
        spec: The study.
        ledger: Its trials.
    """

    def __init__(self, directory: Path, spec: StudySpec, ledger: Ledger) -> None:
        self._directory, self._spec, self._ledger = directory, spec, ledger

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """It may have beaten others, or been beaten."""
        prune_checkpoints(self._directory, self._spec, self._ledger)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """It has no result."""
        prune_checkpoints(self._directory, self._spec, self._ledger)


class Shares(Callback):  # type: ignore[misc]
    """Keeps `Trial.active` up to date: reads from the records, after each evaluation, which share of the entries trained at which step.

    Args:
        directory: The study's directory.
        ledger: Its trials.
    """

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self._directory, self._ledger = directory, ledger
        self._followed: dict[str, _Followed] = {}

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Reads what is new."""
        if "step" not in result:
            return
        ours = self._ledger.of(trial.trial_id)
        run = ours.jobs[int(result.get("position", 0))].run
        with suppress(RecordError):  # a display is worth no failure; whoever needs the records says what is wrong with them
            self._read(ours, run)

    def _read(self, trial: Trial, run: str) -> None:
        followed = self._followed.get(trial.name)
        if followed is None or followed.run != run:
            [elements, *_] = read_table(self._directory, "runs", run)["total_elements"].to_pylist()
            followed = self._followed[trial.name] = _Followed(run, elements)
            trial.active = []
        for part in parts(self._directory, "steps", run):
            if part_number(part) >= followed.next_part:
                rows = read_part(part, "steps", run)
                for step, active in zip(rows["step"].to_pylist(), rows["active_elements"].to_pylist(), strict=True):
                    append_share(trial.active, step, active / followed.elements)
                followed.next_part = part_number(part) + 1


@dataclass
class _Followed:
    """A run whose steps are read as they come: the entries of its groups, and the first part that was not read."""

    run: str
    elements: int
    next_part: int = 0


def append_share(shares: list[tuple[int, float]], step: int, share: float) -> None:
    """Adds a step; of steps with the same share only the first and the last stay. Steps that come again replace what was there."""
    while shares and shares[-1][0] >= step:
        shares.pop()
    if len(shares) > 1 and shares[-1][1] == shares[-2][1] == share:
        shares.pop()
    shares.append((step, share))
