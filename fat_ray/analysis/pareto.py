"""Which settings are not beaten by any other: non-dominated sorting over several objectives."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    costs: NDArray[np.float64] = np.asarray(values, dtype=np.float64).reshape(-1, len(directions)) * signs
    points, place = np.unique(costs, axis=0, return_inverse=True)  # in lexicographic order
    if costs.shape[1] > 2:
        ranks = _ranks_by_members(points[:, 1:])
    else:
        ranks = _ranks_by_last(points[:, -1] if costs.shape[1] == 2 else np.zeros(len(points)))
    return [ranks[at] for at in place.ravel()]


def _ranks_by_last(second: NDArray[np.float64]) -> list[int]:
    """Of two objectives the last point of a front has the least of the second, which grows from front to front."""
    ranks, last = list[int](), list[float]()
    for cost in second.tolist():
        front = bisect_right(last, cost)
        last[front : front + 1] = [cost]
        ranks.append(front + 1)
    return ranks


def _ranks_by_members(others: NDArray[np.float64]) -> list[int]:
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
