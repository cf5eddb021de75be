"""Whether a search still gets anywhere: how long its Pareto front has not grown."""

from collections.abc import Sequence

import numpy as np
from optuna._hypervolume import compute_hypervolume  # Optuna has no public name for it; constraints.txt pins the version

GAIN = 1e-3
"""What counts as growth: more than this share of the box that the objectives' ranges span."""


def trials_without_gain(outcomes: Sequence[Sequence[float] | None], directions: Sequence[str]) -> int:
    """How many trials ended since the front's hypervolume last grew.

    Each objective is scaled to [0, 1] between the best and worst value of all trials; the volume is that between the front and
    (1.1, 1.1, …), so that the ends of the front count too.

    Args:
        outcomes: The trials' values as they ended; None for a pruned one, which never helps the front.
        directions: ``maximize`` or ``minimize``, one per objective.
    """
    completed = [values for values in outcomes if values is not None]
    if not completed:
        return len(outcomes)
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    costs = np.array(completed, dtype=float) * signs
    low, high = costs.min(axis=0), costs.max(axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    volumes = [compute_hypervolume(scaled[: count + 1], np.full(len(signs), 1.1)) for count in range(len(scaled))]
    since, seen, best = 0, 0, -np.inf
    for values in outcomes:
        since += 1
        if values is not None:
            if volumes[seen] > best + GAIN:
                since, best = 0, volumes[seen]
            seen += 1
    return since
