"""What the driver knows of its trials while a study runs: shared by the search, the scheduler, the console and the outcome."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean, median
from typing import Any

from fat_ray.events import Status
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import COSTS


class Close(StrEnum):
    """Why no further trial starts and running ones are asked to stop."""

    INTERRUPTED = "interrupted"
    OUT_OF_TIME = "time budget used up"
    OUT_OF_WORK = "budget of worker-seconds used up"
    OUT_OF_FLOPS = "budget of floating point operations used up"
    NO_ROOM = "no room on the cluster"


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
        failure: Why it cannot go on, as far as anybody has said.
        status: How it ended: completed only if all its runs did; None while it waits or runs.
        ends: Run id to how that run ended.
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
    failure: str | None = None
    status: Status | None = None
    reason: str = ""
    ends: dict[str, Status] = field(default_factory=dict)
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

    @property
    def progress(self) -> float:
        """Share of its steps that are done, over all seeds; 1 when it ended."""
        if self.status is not None:
            return 1.0
        return min(1.0, (self.seeds_done + self.step / self.steps) / len(self.jobs))

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
            self.evaluations[position][self.step] = {
                key: float(value) for key, value in report.items() if key.startswith("val/") or key in COSTS
            }
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
        found = {}
        for step in sorted(self.evaluations[position]):
            values = [seed[step].get(metric, math.nan) for seed in self.evaluations[: position + 1] if step in seed]
            if math.isfinite(mean := fmean(values)):
                found[step] = mean
        return found

    def last(self, metric: str) -> float | None:
        """The metric at the last evaluation: its mean over the seeds that came so far."""
        if not any(self.evaluations):
            return None
        position = max(position for position, seed in enumerate(self.evaluations) if seed)
        return next(reversed(self.curve(metric, position).values()), None)

    def elapsed_s(self, now_s: float) -> float:
        """Seconds since it started, until it ended."""
        return 0.0 if self.started_s is None else (self.ended_s or now_s) - self.started_s


@dataclass
class Ledger:
    """All trials of a study, in the order in which they were handed out.

    Attributes:
        total: Trials that the study will have, as far as is known; baselines included.
        close: Set when the study is to end early.
        notes: What the user should know at the end, such as a baseline that was skipped.
        failure: Why the study as a whole has no result; empty when it has one.
    """

    total: int
    trials: list[Trial] = field(default_factory=list)
    close: Close | None = None
    notes: list[str] = field(default_factory=list)
    failure: str = ""
    started_s: float = field(default_factory=time.monotonic)
    _by_id: dict[str, Trial] = field(default_factory=dict)

    def add(self, trial_id: str, trial: Trial) -> None:
        """Enters a trial under the id that Tune gave it."""
        self.trials.append(trial)
        self._by_id[trial_id] = trial

    def of(self, trial_id: str) -> Trial:
        """The trial that Tune knows by this id."""
        return self._by_id[trial_id]

    def live(self) -> Iterator[Trial]:
        """Trials that wait or run."""
        return (trial for trial in self.trials if trial.status is None)

    def count(self, *statuses: Status) -> int:
        """How many trials ended so."""
        return sum(trial.status in statuses for trial in self.trials)

    @property
    def spent(self) -> Cost:
        """What all runs have used, as far as is known."""
        return sum((cost for trial in self.trials for cost in trial.spent.values()), Cost())

    @property
    def num_running(self) -> int:
        """How many trials are being trained."""
        return sum(trial.started_s is not None for trial in self.live())

    @property
    def progress(self) -> float:
        """Share of the study that is done, from 0 to 1."""
        return min(1.0, sum(trial.progress for trial in self.trials) / max(1, self.total))

    def time_left_s(self, now_s: float) -> float | None:
        """Seconds that the rest takes, if trials go on as the typical one that ended; None before anything is known.

        The median forgives the first trial of a warm slot, which starts its workers.
        """
        ended = [
            trial.elapsed_s(now_s)
            for trial in self.trials
            if trial.started_s is not None and trial.status in (Status.COMPLETED, Status.PRUNED)
        ]
        lanes = max(1, self.num_running)
        if ended:
            return median(ended) * self.total * (1 - self.progress) / lanes
        return (now_s - self.started_s) * (1 - self.progress) / self.progress if self.progress > 0.02 else None
