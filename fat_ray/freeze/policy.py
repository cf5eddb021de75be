"""A policy decides which groups freeze. It is a pure function of what was observed; carrying a decision out is the freezer's business."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Observation:
    """What a policy may look at.

    Attributes:
        step: Optimizer steps done so far.
        event: Decisions taken before this one.
        scores: Per group, NaN where nothing was measured yet.
        errors: Per group, the standard error of its mean distance; infinite where too little was measured.
        dead: Per group, whether its Fisher is zero by decree.
        active: Per group, whether it is active.
        elements: Per group, its number of entries.
    """

    step: int
    event: int
    scores: Floats
    errors: Floats
    dead: Bools
    active: Bools
    elements: Ints


@dataclass(frozen=True)
class Decision:
    """What a policy wants.

    Attributes:
        freeze: Per group, whether it freezes now; never a group that is frozen already.
        threshold: The score below which groups froze; None for policies without one.
        limited_by: ``floor`` or ``cap`` when a limit kept groups active, else empty.
    """

    freeze: Bools
    threshold: float | None = None
    limited_by: str = ""


class Policy(Protocol):
    """Decides at the steps it names.

    Attributes:
        needs_drift: Whether scores must be measured for it; if not, no statistics are collected at all.
    """

    needs_drift: bool

    def is_due(self, step: int) -> bool:
        """Whether a decision is taken at this step, before its update."""
        ...

    def decide(self, observation: Observation) -> Decision:
        """The decision; the same observation always gives the same decision."""
        ...
