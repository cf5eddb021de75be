"""Who is stopped early: rules that look at curves, one module-level class per rule, and know nothing of Ray.

A curve is the running mean of a trial (docs/decisions/0007): step to the mean over the seeds that reached it so far. More is better; the
scheduler turns the sign of what is minimized.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Protocol

import numpy as np

from fat_ray.spec.study import SchedulerSpec

Curve = Mapping[int, float]
"""Step to value, in ascending order of steps, at least one."""

_GOLDEN = 0.6180339887498949
_MIN_OTHERS = 3
"""The median rule judges nobody before this many other trials came as far, as in Google Vizier."""


class Judge(Protocol):
    """Decides, at each evaluation of a search trial, whether it is to stop."""

    def stops(self, trial: int, seed: int, curve: Curve) -> bool:
        """Whether the trial is to stop.

        Args:
            trial: Its number.
            seed: Position of the seed that is trained now.
            curve: Its running mean up to the present step.
        """
        ...


class Halving:
    """One bracket of asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), in the form that stops rather than promotes.

    At each rung a trial is compared with what other trials had there; it stops below the quantile 1 - 1/reduction. Each seed passes each
    rung, and a trial's entry at a rung is its running mean there.

    Args:
        rungs: Steps, ascending.
        reduction: Of this many trials at a rung, one goes on.
    """

    def __init__(self, rungs: Sequence[float], reduction: float) -> None:
        self._rungs, self._quantile = rungs, 1 - 1 / reduction
        self._entries: dict[float, dict[int, float]] = {rung: {} for rung in rungs}
        self._passed: dict[tuple[int, int], int] = {}

    def stops(self, trial: int, seed: int, curve: Curve) -> bool:
        """Whether it lies too low at the rung that it has just reached; of several at once the highest counts."""
        step = max(curve)
        reached = sum(rung <= step for rung in self._rungs)
        if reached <= self._passed.get((trial, seed), 0):
            return False
        self._passed[trial, seed] = reached
        entries = self._entries[self._rungs[reached - 1]]
        others = [value for other, value in entries.items() if other != trial]
        entries[trial] = curve[step]
        return bool(others) and curve[step] < float(np.quantile(others, self._quantile))


class Hyperband:
    """Brackets of `Halving` with later and later first rungs; the last stops nobody (Li et al. 2018, arXiv:1603.06560).

    Brackets get trials so that all of them train about equally many steps. Which trial goes where depends on its number alone.

    Args:
        rungs: Those of the most eager bracket.
        reduction: As in `Halving`.
    """

    def __init__(self, rungs: Sequence[float], reduction: float) -> None:
        self._brackets = [Halving(rungs[first:], reduction) for first in range(len(rungs) + 1)]
        weights = np.array([reduction**left / (left + 1) for left in range(len(rungs), -1, -1)])
        self._edges = np.cumsum(weights / weights.sum())

    def bracket(self, trial: int) -> int:
        """Position of the trial's bracket; a sequence of low discrepancy, so that every few trials hold the shares."""
        return min(int(np.searchsorted(self._edges, (0.5 + trial * _GOLDEN) % 1.0, side="right")), len(self._brackets) - 1)

    def stops(self, trial: int, seed: int, curve: Curve) -> bool:
        """Whether its bracket stops it."""
        return self._brackets[self.bracket(trial)].stops(trial, seed, curve)


class Median:
    """Stops a trial whose best value so far is below the median of the other trials' means up to the same step (Golovin et al. 2017).

    Args:
        grace: Nobody is judged before this step, and means begin at it.
    """

    def __init__(self, grace: int) -> None:
        self._grace = grace
        self._curves: dict[int, dict[int, float]] = {}

    def stops(self, trial: int, seed: int, curve: Curve) -> bool:  # noqa: ARG002 - the interface of judges
        """Whether it is below the median, once three others came as far."""
        step = max(curve)
        self._curves.setdefault(trial, {}).update(curve)
        others = [known for other, known in self._curves.items() if other != trial and max(known) >= step]
        if step < self._grace or len(others) < _MIN_OTHERS:
            return False
        means = [fmean(found) for known in others if (found := [v for at, v in known.items() if self._grace <= at <= step])]
        return bool(means) and max(curve.values()) < median(means)


class Patience:
    """Stops a trial that has not improved for some evaluations.

    Args:
        grace: Nobody is judged before this step.
        evaluations: How many in a row.
        min_delta: An improvement is more than this above the best value before.
    """

    def __init__(self, grace: int, evaluations: int, min_delta: float) -> None:
        self._grace, self._evaluations, self._min_delta = grace, evaluations, min_delta

    def stops(self, trial: int, seed: int, curve: Curve) -> bool:  # noqa: ARG002 - the interface of judges
        """Whether its last improvement lies too far back."""
        best, since = -np.inf, 0
        for value in curve.values():
            improved = value > best + self._min_delta
            best, since = (value, 0) if improved else (best, since + 1)
        return max(curve) >= self._grace and since >= self._evaluations


def build_judge(spec: SchedulerSpec, steps: int) -> Judge | None:
    """The rule that the study names; None when all trials run to their end.

    Args:
        spec: Its settings.
        steps: Optimizer steps of a full run.
    """
    match spec.name:
        case "asha":
            return Halving(rungs(spec, steps), spec.reduction)
        case "hyperband":
            return Hyperband(rungs(spec, steps), spec.reduction)
        case "median":
            return Median(spec.grace_steps)
        case "patience":
            return Patience(spec.grace_steps, spec.patience, spec.min_delta)
        case "none":
            return None


def rungs(spec: SchedulerSpec, steps: int) -> list[float]:
    """Steps at which successive halving looks: `grace_steps` times the powers of `reduction`, before the last step."""
    found, rung = [], float(spec.grace_steps)
    while rung < steps:
        found.append(rung)
        rung *= spec.reduction
    return found
