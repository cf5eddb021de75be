"""Which settings are not beaten by any other: non-dominated sorting over several objectives."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def front_ranks(values: ArrayLike, directions: Sequence[str]) -> list[int]:
    """The Pareto rank of each point: 1 for the front, 2 for the front without the first, and so on.

    A point dominates another when it is at least as good in every objective and better in one; equal points share a rank. With one
    objective this is the dense rank.

    Args:
        values: Finite numbers of shape (points, objectives).
        directions: ``maximize`` or ``minimize`` per objective.
    """
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    costs: NDArray[np.float64] = np.asarray(values, dtype=np.float64).reshape(-1, len(directions)) * signs
    no_worse: NDArray[np.bool_] = np.all(costs[:, None, :] <= costs[None, :, :], axis=2)  # [i, j]: i is nowhere worse than j
    dominates = no_worse & ~no_worse.T
    ranks = np.zeros(len(costs), dtype=np.int64)
    rank = 0
    while (open_points := ranks == 0).any():
        rank += 1
        beaten: NDArray[np.bool_] = np.any(dominates[open_points], axis=0)
        ranks[open_points & ~beaten] = rank
    return [int(found) for found in ranks]
