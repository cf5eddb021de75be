"""A policy that makes given groups active at given steps."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fat_ray.freeze.policy import Decision, Observation


class Scripted:
    """Says at each step named what shall be active from then on.

    Args:
        events: By step, per group.
        needs: What to measure for it.
        factors: By step, per group, the factor on updates.
    """

    def __init__(
        self,
        events: Mapping[int, NDArray[np.bool_]],
        needs: frozenset[str] = frozenset(),
        factors: Mapping[int, NDArray[np.float64]] | None = None,
    ) -> None:
        self.events, self.needs, self.factors = events, needs, factors or {}
        self.seen: list[Observation] = []

    def is_due(self, step: int) -> bool:
        return step in self.events

    def decide(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        target = self.events[observation.step]
        return Decision(observation.active & ~target, thaw=~observation.active & target)

    def lr_factors(self, step: int) -> NDArray[np.float64] | None:
        return self.factors.get(step)
