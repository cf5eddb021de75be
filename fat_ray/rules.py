"""The decision mathematics: smoothing, scores, threshold, floor and cap, and the choice among settings, in NumPy alone.

The live policy and any later replay from records call these same functions, so that both decide alike by construction. All arrays have
one entry per group; those of Fisher drift may have rows before that, one per setting, and each row comes out as it would alone. Source:
arXiv 2606.10196, Alg. 1 and 2; floor and cap are this project's.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

ScoreKind = Literal["mean", "last", "total_variation"]


@dataclass(frozen=True)
class DriftHistory:
    """What is remembered of each group's distances, shape (..., groups); a pure value, replaced by `observe`.

    Attributes:
        average: Exponential average of the distances, not yet corrected for its start at zero.
        smoothed: The corrected average d̂ of the last update that measured the group; 0 before.
        count: Number of distances seen.
        total: Sum of all d̂ so far.
        variation: Σ|d̂_t - d̂_{t-1}| so far.
        distances: Number of distances seen, without the zero that `begin` may count.
        first_moment: Sum of the distances.
        second_moment: Sum of their squares.
    """

    average: Floats
    smoothed: Floats
    count: Ints
    total: Floats
    variation: Floats
    distances: Ints
    first_moment: Floats
    second_moment: Floats

    @classmethod
    def empty(cls, num_groups: int) -> "DriftHistory":
        """Nothing was measured yet."""
        zeros, none = np.zeros(num_groups), np.zeros(num_groups, np.int64)
        return cls(zeros, zeros, none, zeros, zeros, none, zeros, zeros)


def begin(history: DriftHistory, present: Bools) -> DriftHistory:
    """The history after the first collection of some groups, if it counts as a distance of 0 (`drift.start: zero`, as released)."""
    return replace(history, count=np.where(present, 1, history.count))


def observe(
    history: DriftHistory, distance: Floats, measured: Bools, smoothing: Floats | float, *, corrected: Bools | bool = True
) -> DriftHistory:
    """The history after one more update.

    `average <- β·average + (1-β)·d` and `d̂ = average / (1 - β^count)`: the division makes the first d̂ equal the first distance.

    Args:
        history: Before the update.
        distance: One distance per group; entries that were not measured are ignored.
        measured: Groups whose distance counts; the others keep their history.
        smoothing: β, 0 <= β < 1; or one per row of a history with several rows, (rows, 1).
        corrected: Whether to divide, likewise; without, d̂ starts at zero.
    """
    count = history.count + measured
    average = smoothing * history.average + (1.0 - smoothing) * distance
    smoothed = average / (1.0 - corrected * np.power(smoothing, np.maximum(count, 1)))
    if not measured.all():  # of many settings at once, the time goes into choosing
        average, smoothed = np.where(measured, average, history.average), np.where(measured, smoothed, history.smoothed)
    seen = np.where(measured, distance, 0.0)
    return DriftHistory(
        average=average,
        smoothed=smoothed,
        count=count,
        total=history.total + measured * smoothed,
        variation=history.variation + (history.count > 0) * np.abs(smoothed - history.smoothed),
        distances=history.distances + measured,
        first_moment=history.first_moment + seen,
        second_moment=history.second_moment + seen**2,
    )


def score(history: DriftHistory, kind: ScoreKind) -> Floats:
    """What the policy compares, NaN for a group that was never measured.

    mean: mean of all d̂ (the paper); last: the last d̂; total_variation: the sum of their changes (the released code).
    """
    seen = history.count > 0
    values = {
        "mean": history.total / np.maximum(history.count, 1),
        "last": history.smoothed,
        "total_variation": history.variation,
    }[kind]
    return np.where(seen, values, np.nan)


def standard_error(history: DriftHistory) -> Floats:
    """Standard error of each group's mean distance; infinite below two distances."""
    number = np.maximum(history.distances, 2)
    mean = history.first_moment / number
    variance = np.maximum(history.second_moment / number - mean**2, 0.0) * number / (number - 1)
    return np.where(history.distances >= 2, np.sqrt(variance / number), np.inf)


def drift_is_due(step: Ints | int, every: Ints | int, warmup: Ints | int) -> Bools | bool:
    """Whether Fisher drift decides at a step: every n steps, neither at step 0 nor before the end of the warm-up."""
    return (step > 0) & (step >= warmup) & (step % every == 0)


@dataclass(frozen=True)
class DriftRule:
    """How Fisher drift decides; numbers, or arrays of shape (...) for as many settings at once.

    Attributes:
        strength: λ of `threshold`.
        floor: Smallest fraction of all elements that must stay active.
        cap: Largest fraction of the active elements that may freeze at a time.
        confidence: A score counts with so many of its standard errors added.
    """

    strength: Floats | float
    floor: Floats | float
    cap: Floats | float
    confidence: Floats | float


@dataclass(frozen=True)
class Selection:
    """Which groups freeze, shape (..., groups), below which value (...), and which limit held others back: ``floor``, ``cap`` or empty."""

    freeze: Bools
    threshold: Floats
    limited_by: NDArray[np.str_]


def decide_by_drift(scores: Floats, errors: Floats, active: Bools, elements: Ints, rule: DriftRule) -> Selection:
    """A decision of Fisher drift: `threshold` over the active groups that have a score, then `select` below it.

    Of several settings at once, each row of the arrays is decided exactly as it would be alone.

    Args:
        scores: Drift scores, shape (..., groups), NaN where nothing was measured.
        errors: Their standard errors, infinite where too little was measured.
        active: Groups that are active before the decision.
        elements: Parameter entries per group, shape (groups,).
        rule: The setting, or one per row.

    Returns:
        The decision; a threshold of -inf where no active group has a score.
    """
    tau = threshold(scores, active & np.isfinite(scores), rule.strength)
    confidence = np.asarray(rule.confidence)[..., None]
    with np.errstate(invalid="ignore"):  # no confidence times an unknown error
        upper = np.where(confidence > 0, scores + confidence * errors, scores)
    return select(upper, active, elements, tau, floor=rule.floor, cap=rule.cap)


def threshold(scores: Floats, eligible: Bools, strength: Floats | float) -> Floats:
    """`τ = mean + λ·std` over the eligible groups, the last dimension (population standard deviation); -inf where there is none.

    Sums run over all groups, the others as zeros, so that each of many rows gives the same number, to the bit, as it does alone.
    """
    number = np.maximum(eligible.sum(-1), 1)
    mean = _row_sums(np.where(eligible, scores, 0.0)) / number
    deviation = np.where(eligible, scores - mean[..., None], 0.0)
    tau = mean + strength * np.sqrt(_row_sums(deviation**2) / number)
    return np.where(eligible.any(-1), tau, -np.inf)


def _row_sums(values: Floats) -> Floats:
    return np.asarray(np.ascontiguousarray(values).sum(-1))


def select(scores: Floats, active: Bools, elements: Ints, tau: Floats | float, *, floor: Floats | float, cap: Floats | float) -> Selection:
    """Freezes active groups whose score lies below `tau`, lowest first, within the limits.

    A group that does not fit a limit stays active; smaller ones after it may still freeze. The active group with the highest score
    always stays, so that the active set never becomes empty. Groups without a score (NaN) stay.

    Args:
        scores: One per group, shape (..., groups).
        active: Groups that are active before the decision, likewise.
        elements: Parameter entries per group, shape (groups,).
        tau: The threshold, a number or shape (...); as are the next two.
        floor: Smallest fraction of all elements that must stay active.
        cap: Largest fraction of the active elements that may freeze now.
    """
    tau = np.broadcast_to(np.asarray(tau, np.float64), scores.shape[:-1])
    candidate = active & (scores < tau[..., None])
    highest = np.where(active & ~np.isnan(scores), scores, -np.inf).argmax(-1)
    np.put_along_axis(candidate, np.asarray(highest)[..., None], values=False, axis=-1)
    num_active = np.where(active, elements, 0).sum(-1)
    budget_floor = num_active - np.ceil(floor * elements.sum()).astype(np.int64)
    budget_cap = (cap * num_active).astype(np.int64)
    freeze, limited = _fill(scores, candidate, elements, np.minimum(budget_floor, budget_cap))
    return Selection(freeze, tau, np.where(limited, np.where(budget_floor <= budget_cap, "floor", "cap"), ""))


def _fill(scores: Floats, candidate: Bools, elements: Ints, budget: Ints) -> tuple[Bools, Bools]:
    """Takes candidates, lowest score first, as long as their elements fit the budget; and whether one did not."""
    rows = candidate.reshape(-1, elements.size)
    most = int(rows.sum(-1).max(initial=0))
    order = np.where(rows, scores.reshape(rows.shape), np.inf).argsort(-1, kind="stable")[:, :most]
    wanted = np.take_along_axis(rows, order, -1).T.copy()
    sizes = np.where(wanted, elements[order].T, 0)
    room, taken = np.broadcast_to(budget, candidate.shape[:-1]).flatten(), np.zeros_like(wanted)
    for size, takes in zip(sizes, taken, strict=True):
        np.less_equal(size, room, out=takes)
        room -= size * takes
    taken &= wanted
    freeze = np.zeros_like(rows)
    np.put_along_axis(freeze, order, taken.T, -1)
    limited = np.asarray((wanted & ~taken).any(0))
    return np.reshape(freeze, candidate.shape), np.reshape(limited, candidate.shape[:-1])


def select_random(active: Bools, elements: Ints, target: int, rng: np.random.Generator) -> Bools:
    """Freezes active groups in random order while at least `target` elements stay active.

    What remains differs from the target by less than the smallest group still active.
    """
    freeze = np.zeros_like(active)
    remaining = int(elements[active].sum())
    for group in rng.permutation(np.flatnonzero(active)):
        if remaining - int(elements[group]) >= target:
            freeze[group] = True
            remaining -= int(elements[group])
    return freeze


def select_first(active: Bools, elements: Ints, target: float) -> Bools:
    """Freezes active groups in network order as long as at least `target` elements, and one group, stay active."""
    freeze = np.zeros_like(active)
    order = np.flatnonzero(active)[:-1]
    remaining = elements[active].sum() - np.cumsum(elements[order])
    freeze[order[remaining >= target]] = True
    return freeze


def select_smallest(values: Floats, active: Bools, elements: Ints, target: float) -> Bools:
    """Freezes all active groups but those of the largest values, which may hold `target` elements together.

    Largest first; a group that does not fit freezes, smaller ones after it may still stay. The first always stays, and so do groups
    without a value (NaN), whose elements count before all others.
    """
    known = np.flatnonzero(active & ~np.isnan(values))
    freeze = np.zeros_like(active)
    kept = int(elements[active & np.isnan(values)].sum())
    for place, group in enumerate(known[np.argsort(-values[known], kind="stable")]):
        fits = kept + int(elements[group]) <= target
        if place == 0 or fits:
            kept += int(elements[group])
        else:
            freeze[group] = True
    return freeze


def relative_change(previous: Floats, current: Floats) -> Floats:
    """`|previous - current| / previous`; 0 where both are 0, infinite where only the previous is, NaN where either is not known."""
    change = np.abs(previous - current)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(change == 0, 0.0, change / previous)


def select_settled(change: Floats, elements: Ints, percentile: float, *, target: float) -> tuple[int, float]:
    """How many layers, from the first on, have settled: their change lies below a percentile of all changes that are known.

    Args:
        change: Per active layer, in network order; NaN where not known.
        elements: Active entries per layer.
        percentile: 0 < p <= 100, with linear interpolation.
        target: So many elements stay active.

    Returns:
        The number of leading layers that freeze, and the threshold, which is -inf if no change is known.
    """
    finite = change[np.isfinite(change)]
    if not finite.size:
        return 0, -np.inf
    tau = float(np.percentile(finite, percentile))
    remaining = elements.sum() - np.cumsum(elements)
    settled = (change < tau) & (remaining >= target)
    return int(np.logical_and.accumulate(settled).sum()), tau


def spread(values: Floats, number: int) -> list[int]:
    """So many places of values that lie as evenly as can be between the least and the greatest, from the least on.

    Each is the nearest to the middle of one of so many equal parts of the range, so that the ends, where most values may lie, are no
    better than the rest.
    """
    number, low, high = min(number, values.size), values.min(), values.max()
    left, chosen = np.ones(values.shape, np.bool_), list[int]()
    for middle in low + (high - low) * (np.arange(number) + 0.5) / number:
        place = int(np.where(left, np.abs(values - middle), np.inf).argmin())
        left[place] = False
        chosen.append(place)
    return chosen


def compromise(values: Mapping[str, Sequence[float]], directions: Sequence[str]) -> str:
    """The candidate nearest to the ideal point, each objective scaled to [0, 1] between its worst and best value among the candidates.

    With one objective this is the best one. It always lies on the Pareto front. Ties go to the earlier one.

    Args:
        values: Candidate to its objective values, at least one candidate.
        directions: ``maximize`` or ``minimize``, one per objective.
    """
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    costs = np.array(list(values.values())) * signs
    low, high = costs.min(axis=0), costs.max(axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    return list(values)[int(np.argmin((scaled**2).sum(axis=1)))]


def front_ranks(values: ArrayLike, directions: Sequence[str]) -> list[int]:
    """The Pareto rank of each point: 1 for the front, 2 for the front without the first, and so on.

    A point dominates another when it is at least as good in every objective and better in one; equal points share a rank. With one
    objective this is the dense rank. Points are taken in lexicographic order, so that each can only be dominated by those before it, and go
    to the first front that holds none that dominates it, found by bisection (Zhang et al. 2015).

    Args:
        values: Finite numbers of shape (points, objectives).
        directions: ``maximize`` or ``minimize`` per objective.
    """
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    costs: Floats = np.asarray(values, dtype=np.float64).reshape(-1, len(directions)) * signs
    points, place = np.unique(costs, axis=0, return_inverse=True)  # in lexicographic order
    if costs.shape[1] > 2:
        ranks = _ranks_by_members(points[:, 1:])
    else:
        ranks = _ranks_by_last(points[:, -1] if costs.shape[1] == 2 else np.zeros(len(points)))
    return [ranks[at] for at in place.ravel()]


def _ranks_by_last(second: Floats) -> list[int]:
    """Of two objectives the last point of a front has the least of the second, which grows from front to front."""
    ranks, last = list[int](), list[float]()
    for cost in second.tolist():
        front = bisect_right(last, cost)
        last[front : front + 1] = [cost]
        ranks.append(front + 1)
    return ranks


def _ranks_by_members(others: Floats) -> list[int]:
    """The first front without a point that is no worse in all objectives but the first, in which none is better."""
    ranks, fronts = list[int](), list[list[int]]()

    def dominated(front: int, at: int) -> bool:
        return bool((others[fronts[front]] <= others[at]).all(axis=1).any())

    for at in range(len(others)):
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if dominated(middle, at) else (low, middle)
        if low == len(fronts):
            fronts.append([])
        fronts[low].append(at)
        ranks.append(low + 1)
    return ranks


def running_mean(seeds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """For each step of the last seed the mean over this seed and those before it that have that step.

    Args:
        seeds: For each seed, in the order in which they were trained, a value by step. Steps with a mean that is NaN or infinite are
            left out.
    """
    means = {step: fmean(seed[step] for seed in seeds if step in seed) for step in sorted(seeds[-1] if seeds else ())}
    return {step: mean for step, mean in means.items() if isfinite(mean)}
