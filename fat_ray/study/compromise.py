"""Which finished trial speaks for a search with several objectives: the one nearest to having the best of each."""

from collections.abc import Mapping, Sequence

import numpy as np


def compromise(values: Mapping[str, Sequence[float]], directions: Sequence[str]) -> str:
    """The trial nearest to the ideal point, each objective scaled to [0, 1] between its worst and best value among the trials.

    With one objective this is the best trial. It always lies on the Pareto front. Ties go to the earlier trial.

    Args:
        values: Trial to its objective values, at least one trial, in the order in which they finished.
        directions: ``maximize`` or ``minimize``, one per objective.
    """
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    costs = np.array(list(values.values())) * signs
    low, high = costs.min(axis=0), costs.max(axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    return list(values)[int(np.argmin((scaled**2).sum(axis=1)))]
