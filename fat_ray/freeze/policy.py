"""A policy decides which groups freeze. It is a pure function of what was observed; carrying a decision out is the freezer's business."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

Need = Literal["drift", "fisher", "gradient_norm"]


@dataclass(frozen=True)
class Observation:
    """What a policy may look at. What it does not need is NaN.

    Attributes:
        step: Optimizer steps done so far.
        event: Decisions taken before this one.
        scores: Per group, the drift score; NaN where nothing was measured yet.
        errors: Per group, the standard error of its mean distance; infinite where too little was measured.
        dead: Per group, whether its Fisher is zero by decree.
        active: Per group, whether it is active.
        elements: Per group, its number of entries.
        gradient_norm: Per group, the L2 norm of this step's mean gradient over the global batch; NaN for frozen groups.
        previous_gradient_norm: The same at the decision before this one; NaN at the first.
        fisher: Per group, the mean of its diagonal Fisher values; NaN for frozen groups.
    """

    step: int
    event: int
    scores: Floats
    errors: Floats
    dead: Bools
    active: Bools
    elements: Ints
    gradient_norm: Floats
    previous_gradient_norm: Floats
    fisher: Floats


@dataclass(frozen=True)
class Decision:
    """What a policy wants.

    Attributes:
        freeze: Per group, whether it freezes now; never a group that is frozen already, and never all that is active.
        threshold: The value below which groups froze; None for policies without one.
        limited_by: ``floor`` or ``cap`` when a limit kept groups active, else empty.
        thaw: Per group, whether it becomes active again; never a group that is active. None: none.
    """

    freeze: Bools
    threshold: float | None = None
    limited_by: str = ""
    thaw: Bools | None = None


class Policy(Protocol):
    """Decides at the steps it names. What changes over time it must read from the observation, never remember.

    Attributes:
        needs: What must be measured for it: ``drift`` at every collection, ``fisher`` and ``gradient_norm`` at the steps of its
            decisions. Empty: no statistics are collected at all.
    """

    needs: frozenset[Need] = frozenset()

    def is_due(self, step: int) -> bool:
        """Whether a decision is taken at this step, before its update."""
        ...

    def decide(self, observation: Observation) -> Decision:
        """The decision; the same observation always gives the same decision."""
        ...

    def lr_factors(self, step: int) -> Floats | None:  # noqa: ARG002  for those that scale
        """Per group, the factor on its learning rate at this step; None: 1 for all, as by default."""
        return None
