"""What people look at while a study runs and after it: its trials, its front, how far it is. Made by the driver, or from the records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fat_ray.events import Status
from fat_ray.rules import compromise, front_ranks
from fat_ray.spec.study import Objective

WAITING, RUNNING, STOPPING, INTERRUPTED = "waiting", "running", "stopping", "interrupted"
"""What a trial that has not ended is doing, the last when its driver is gone; one that has ended has the word of its `Status`."""

OVER = tuple(status.value for status in Status)
DONE = tuple(status.value for status in Status if status is not Status.STOPPED)
"""States of trials that are over for good: those that were stopped on request may go on."""
TROUBLE = (Status.DIVERGED.value, Status.FAILED.value)


@dataclass(frozen=True)
class TrialLine:
    """One trial: a setting of the search, or a baseline.

    Attributes:
        name: ``t0003``, or the baseline's name.
        params: What is searched, with this trial's values.
        state: `WAITING`, `RUNNING`, `STOPPING`, `INTERRUPTED`, or how it ended.
        seeds_done: Runs that are over.
        seeds: Runs in all, one per seed.
        step: Optimizer steps that are known of the run that trains now, or trained last.
        steps: Optimizer steps of a whole run.
        last: The study's metric at the latest evaluation; None before the first.
        best: Its most favourable value at any evaluation.
        active: The share of parameter entries that trained: (step, share) of that run, see `text.sparkline`.
        elapsed_s: Seconds since it began, until it ended.
        reason: Why it did not complete; empty otherwise.
        values: The objectives at the budget, if it completed.
    """

    name: str
    params: Mapping[str, Any]
    state: str
    seeds_done: int
    seeds: int
    step: int
    steps: int
    last: float | None = None
    best: float | None = None
    active: Sequence[tuple[int, float]] = ()
    elapsed_s: float = 0.0
    reason: str = ""
    values: Sequence[float] | None = None
    is_baseline: bool = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in OVER

    @property
    def progress(self) -> float:
        """Share of its steps that are done, over all seeds; 1 when it has ended for good."""
        if self.state in DONE:
            return 1.0
        return min(1.0, (self.seeds_done + self.step / self.steps) / self.seeds)


@dataclass(frozen=True)
class Picture:
    """A study at one moment.

    Attributes:
        study: Its name.
        state: What it is doing, in one word: see `fat_ray.records.driver`.
        detail: More about that; may be empty.
        metric: What `last` and `best` of the trials are, such as ``val/f1``.
        objectives: What the search improves; `TrialLine.values` are theirs.
        total: Trials that the study will have, as far as is known; baselines included.
        trials: Those that were handed out, in that order.
        elapsed_s: Seconds since it began, until it ended.
        warnings: What a person should know, each once.
    """

    study: str
    state: str
    detail: str
    metric: str
    objectives: Sequence[Objective]
    total: int
    trials: Sequence[TrialLine]
    elapsed_s: float = 0.0
    warnings: Sequence[str] = ()

    def count(self, *states: str) -> int:
        """How many trials are in one of these states."""
        return sum(trial.state in states for trial in self.trials)

    @property
    def done(self) -> int:
        """Trials that have ended for good, however."""
        return self.count(*DONE)

    @property
    def running(self) -> int:
        """Trials that train."""
        return self.count(RUNNING, STOPPING)

    @property
    def queued(self) -> int:
        """Trials that have not begun; none once the study is over for good."""
        begun = sum(trial.state != WAITING for trial in self.trials)
        return 0 if self.state in ("done", "failed") else max(0, self.total - begun)

    @property
    def is_live(self) -> bool:
        """Whether more is to come, as far as is known."""
        return self.state in ("running", "ending")

    @property
    def progress(self) -> float:
        """Share of the study that is done, from 0 to 1."""
        return min(1.0, sum(trial.progress for trial in self.trials) / max(1, self.total))

    @property
    def time_left_s(self) -> float | None:
        """Seconds that the rest takes, if trials go on as the typical one that ended; None when nothing is known, or to come.

        The median forgives the first trial of a warm slot, which starts its workers. Before any has ended, those that run are prolonged.
        """
        if not self.is_live:
            return None
        known = [trial.elapsed_s for trial in self.trials if trial.elapsed_s and trial.state in (Status.COMPLETED, Status.PRUNED)]
        known = known or [trial.elapsed_s / trial.progress for trial in self.trials if trial.state == RUNNING and trial.progress >= 0.1]
        return median(known) * self.total * (1 - self.progress) / max(1, self.running) if known else None

    @property
    def front(self) -> list[TrialLine]:
        """The Pareto front of the objectives at the budget, completed trials only, the best in the first objective first."""
        return [trial for trial, rank in self._ranked() if rank == 1]

    @property
    def best(self) -> TrialLine | None:
        """The best compromise between the objectives among the trials of the search, see `rules.compromise`; None while there is none."""
        values = {trial.name: trial.values for trial in self.trials if trial.values is not None and not trial.is_baseline}
        if not values:
            return None
        name = compromise(values, self._directions)
        return next(trial for trial in self.trials if trial.name == name)

    @property
    def _directions(self) -> list[str]:
        return [objective.direction for objective in self.objectives]

    def _ranked(self) -> list[tuple[TrialLine, int]]:
        known = [(trial, trial.values) for trial in self.trials if trial.values is not None]
        ranks = front_ranks([list(values) for _, values in known], self._directions)
        sign = -1.0 if self._directions[0] == "maximize" else 1.0
        order = sorted(range(len(known)), key=lambda place: (sign * known[place][1][0], place))
        return [(known[place][0], ranks[place]) for place in order]
