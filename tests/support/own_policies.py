"""Policies as users write them: functions of a `PolicyContext`, and mistakes that they make."""

from typing import Any

import numpy as np

from fat_ray.freeze.context import PolicyContext
from fat_ray.freeze.policy import Bools, Decision, Floats, Observation, Policy


class Alternate:
    """Freezes every other group and changes them over each time; scales learning rates. No base class, no `needs`."""

    def __init__(self, context: PolicyContext) -> None:
        self._even = np.arange(len(context.groups)) % 2 == 0
        self._every = int(context.options.get("every", 4))

    def is_due(self, step: int) -> bool:
        return step % self._every == 0

    def decide(self, observation: Observation) -> Decision:
        want = self._even if (observation.step // self._every) % 2 == 0 else ~self._even
        if not want.any():
            want = ~want
        return Decision(observation.active & ~want, thaw=want & ~observation.active)

    def lr_factors(self, step: int) -> Floats:
        return np.where(self._even, 1.0, 0.5)


class SmallestGradient(Policy):
    """Freezes the active group with the smallest gradient."""

    needs = frozenset(("gradient_norm",))

    def is_due(self, step: int) -> bool:
        return step > 0

    def decide(self, observation: Observation) -> Decision:
        freeze = np.zeros_like(observation.active)
        known = np.flatnonzero(observation.active & np.isfinite(observation.gradient_norm))
        if known.size > 1:
            freeze[known[np.argmin(observation.gradient_norm[known])]] = True
        return Decision(freeze)


def alternate(context: PolicyContext) -> Alternate:
    return Alternate(context)


def smallest_gradient(context: PolicyContext) -> SmallestGradient:
    return SmallestGradient()


class Wrong(Policy):
    """Decides what it is told to at every step."""

    def __init__(self, decision: Any = None, factors: Any = None, needs: Any = frozenset()) -> None:
        self._decision, self._factors, self.needs = decision, factors, needs

    def is_due(self, step: int) -> bool:
        return True

    def decide(self, observation: Observation) -> Decision:
        return self._decision(observation.active)  # type: ignore[no-any-return]

    def lr_factors(self, step: int) -> Any:
        return self._factors


def none_left(context: PolicyContext) -> Policy:
    return Wrong(Decision)


def frozen_twice(context: PolicyContext) -> Policy:
    return Wrong(lambda active: Decision(~active))


def thawed_twice(context: PolicyContext) -> Policy:
    return Wrong(lambda active: Decision(np.zeros_like(active), thaw=active))


def too_short(context: PolicyContext) -> Policy:
    return Wrong(lambda active: Decision(active[1:]))


def as_list(context: PolicyContext) -> Policy:
    return Wrong(lambda active: Decision([False] * active.size))  # type: ignore[arg-type]


def undecided(context: PolicyContext) -> Policy:
    return Wrong(lambda active: None)


def breaks(context: PolicyContext) -> Policy:
    def decide(active: Bools) -> Decision:
        raise KeyError("rows")

    return Wrong(decide)


def negative_factors(context: PolicyContext) -> Policy:
    return Wrong(factors=-np.ones(len(context.groups)))


def one_factor(context: PolicyContext) -> Policy:
    return Wrong(factors=0.5)


def needs_magic(context: PolicyContext) -> Policy:
    return Wrong(needs=frozenset(("magic",)))


def returns_nothing(context: PolicyContext) -> None:
    return None


def fails(context: PolicyContext) -> Policy:
    raise OSError(f"no file for {len(context.groups)} groups")


NOT_A_FUNCTION = 3
