"""What the driver knows of its trials while a study runs: shared by the search, the scheduler, the console and the outcome."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

from fat_ray.events import Status
from fat_ray.spec.job import RunJob


class Close(StrEnum):
    """Why no further trial starts and running ones are asked to stop."""

    INTERRUPTED = "interrupted"
    OUT_OF_TIME = "time budget used up"


@dataclass
class Trial:
    """One setting, trained once per seed.

    Attributes:
        name: ``t0003`` for trials of the search, else the baseline's name; the part of the run ids before the seed.
        number: Position in the search; None for a baseline.
        params: Searched fields and their values.
        jobs: One per seed, in the order in which they are trained.
        step: Last step of which something was heard.
        seeds_done: Runs that ended.
        metrics: Last evaluation of the first seed.
        asked_to_stop: The status that its runs were asked to end with.
        status: How it ended: completed only if all its runs did; None while it waits or runs.
        ends: Run id to how that run ended.
    """

    name: str
    number: int | None
    params: Mapping[str, Any]
    jobs: list[RunJob]
    step: int = 0
    seeds_done: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    asked_to_stop: Status | None = None
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
    """

    total: int
    trials: list[Trial] = field(default_factory=list)
    close: Close | None = None
    notes: list[str] = field(default_factory=list)
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
        ended = [trial.elapsed_s(now_s) for trial in self.trials if trial.status in (Status.COMPLETED, Status.PRUNED)]
        lanes = max(1, self.num_running)
        if ended:
            return median(ended) * self.total * (1 - self.progress) / lanes
        return (now_s - self.started_s) * (1 - self.progress) / self.progress if self.progress > 0.02 else None
