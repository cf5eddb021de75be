"""What the driver knows of its trials while a study runs: shared by the search, the scheduler, the console and the outcome."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fat_ray.events import RunEnd, Status
from fat_ray.rules import running_mean
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import COSTS


class Close(StrEnum):
    """Why no further trial starts and running ones are asked to stop."""

    INTERRUPTED = "interrupted"
    OUT_OF_TIME = "time budget used up"
    OUT_OF_WORK = "budget of worker-seconds used up"
    OUT_OF_FLOPS = "budget of floating point operations used up"
    OUT_OF_DISK = "too little disk space"
    NO_ROOM = "no room on the cluster"

    @property
    def may_go_on(self) -> bool:
        """Whether what was stopped goes on when the study is resumed; what a budget ended stays as it is."""
        return self in (Close.INTERRUPTED, Close.OUT_OF_DISK)


@dataclass(frozen=True)
class Cost:
    """What a run has used.

    Attributes:
        worker_s: Worker-seconds.
        flops: Analytic floating point operations.
    """

    worker_s: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.worker_s + other.worker_s, self.flops + other.flops)


@dataclass
class Trial:
    """One setting, trained once per seed.

    Attributes:
        name: ``t0003`` for trials of the search, else the baseline's name; the part of the run ids before the seed.
        number: Position in the search; None for a baseline.
        params: Searched fields and their values; of a baseline what it sets.
        jobs: One per seed, in the order in which they are trained.
        step: Last step of which something was heard, of the seed that is trained now.
        seeds_done: Runs that ended.
        evaluations: For each seed, in their order, its evaluations by step.
        spent: Run id to what it has used, as far as is known.
        asked_to_stop: The status that its runs were asked to end with.
        cuts: Position of a seed to the step of the evaluation at which early stopping wanted it to end; what came later counts for nobody.
        failure: Why it cannot go on, as far as anybody has said.
        status: How it ended: completed only if all its runs did; None while it waits or runs.
        ends: Run id to how that run ended.
        results: Ends of its runs that completed, in the order of its seeds.
        active: (step, share of the entries that train) of the run that trains now or trained last, see `view.text.sparkline`.
    """

    name: str
    number: int | None
    params: Mapping[str, Any]
    jobs: list[RunJob]
    step: int = 0
    seeds_done: int = 0
    evaluations: list[dict[int, Mapping[str, float]]] = field(default_factory=list)
    spent: dict[str, Cost] = field(default_factory=dict)
    asked_to_stop: Status | None = None
    cuts: dict[int, int] = field(default_factory=dict)
    failure: str | None = None
    status: Status | None = None
    reason: str = ""
    ends: dict[str, Status] = field(default_factory=dict)
    results: Sequence[RunEnd] = ()
    active: list[tuple[int, float]] = field(default_factory=list)
    started_s: float | None = None
    ended_s: float | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of one of its runs."""
        return self.jobs[0].spec.train.steps

    @property
    def is_baseline(self) -> bool:
        """Whether it is a reference that the search does not see."""
        return self.number is None

    def note(self, report: Mapping[str, Any]) -> int | None:
        """Enters a report of the trial's process; the scheduler and the search are both told of it.

        Args:
            report: An evaluation, with the position of its seed, or the number of seeds that are done.

        Returns:
            The position of the seed whose evaluation it is; None if it is none.
        """
        self.failure = report.get("failure", self.failure)
        if "step" in report:
            position = int(report.get("position", 0))
            while len(self.evaluations) <= position:
                self.evaluations.append({})
            self.step = int(report["step"])
            seen = {step: values for step, values in self.evaluations[position].items() if step < self.step}  # it may have gone back
            found = {key: float(value) for key, value in report.items() if key.startswith("val/") or key in COSTS}
            self.evaluations[position] = {**seen, self.step: found}
            self.spent[self.jobs[position].run] = Cost(float(report.get("worker_s", 0.0)), float(report.get("flops", 0.0)))
            return position
        if "seeds_done" in report:
            self.seeds_done = int(report["seeds_done"])
            if self.seeds_done < len(self.jobs):
                self.step = 0
                if self.asked_to_stop is Status.PRUNED:  # came too late for that seed; the next one is judged again
                    self.asked_to_stop = None
        return None

    def curve(self, metric: str, position: int) -> dict[int, float]:
        """The running mean: for each evaluation of a seed, the mean of the metric over this seed and those before it, at that step.

        Evaluations at which it is missing, NaN or infinite are left out.
        """
        seeds = [{step: values.get(metric, math.nan) for step, values in seed.items()} for seed in self.evaluations[: position + 1]]
        return running_mean(seeds)

    def last(self, metric: str) -> float | None:
        """The metric at the last evaluation: its mean over the seeds that came so far."""
        if not any(self.evaluations):
            return None
        position = max(position for position, seed in enumerate(self.evaluations) if seed)
        return next(reversed(self.curve(metric, position).values()), None)

    def best(self, metric: str, direction: str) -> float | None:
        """The most favourable of all evaluations of the seed that came last, as `last` counts them."""
        if not any(self.evaluations):
            return None
        position = max(position for position, seed in enumerate(self.evaluations) if seed)
        choose = max if direction == "maximize" else min
        return choose(self.curve(metric, position).values(), default=None)

    def elapsed_s(self, now_s: float) -> float:
        """Seconds since it started, until it ended."""
        return 0.0 if self.started_s is None else (self.ended_s or now_s) - self.started_s


@dataclass
class Ledger:
    """All trials of a study, in the order in which they were handed out.

    Attributes:
        total: Trials that the study will have, as far as is known; baselines included.
        close: Set when the study is to end early.
        stopped_by: The signal that interrupted the study; None without one.
        is_save_asked: Set when all running trials are to save a checkpoint.
        notes: What the user should know at the end, such as a baseline that was skipped.
        failure: Why the study as a whole has no result; empty when it has one.
    """

    total: int
    trials: list[Trial] = field(default_factory=list)
    close: Close | None = None
    stopped_by: int | None = None
    is_save_asked: bool = False
    notes: list[str] = field(default_factory=list)
    failure: str = ""
    started_s: float = field(default_factory=time.monotonic)
    _by_id: dict[str, Trial] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given into the snapshot of each trial, none of which is read, and which grew with all trials."""
        return {}

    def add(self, trial_id: str, trial: Trial) -> None:
        """Enters a trial, unless it is there, under the id that Tune gave it."""
        if not any(known is trial for known in self.trials):
            self.trials.append(trial)
        self._by_id[trial_id] = trial

    def handed_out(self) -> list[Trial]:
        """Trials that wait or run in Tune: without those of an earlier driver that are yet to go on."""
        return [trial for trial in self._by_id.values() if trial.status is None]

    def of(self, trial_id: str) -> Trial:
        """The trial that Tune knows by this id."""
        return self._by_id[trial_id]

    def warn(self, text: str) -> None:
        """Notes it, unless it was noted before."""
        if text not in self.notes:
            self.notes.append(text)

    def end_early(self, why: Close) -> None:
        """No further trial starts; running ones are to be stopped."""
        self.close = why
        self.warn(f"{why}: running trials were stopped, and the rest was left out")

    def live(self) -> Iterator[Trial]:
        """Trials that wait, here or in Tune, or run."""
        return (trial for trial in self.trials if trial.status is None)

    def count(self, *statuses: Status) -> int:
        """How many trials ended so."""
        return sum(trial.status in statuses for trial in self.trials)

    @property
    def spent(self) -> Cost:
        """What all runs have used, as far as is known."""
        return sum((cost for trial in self.trials for cost in trial.spent.values()), Cost())
