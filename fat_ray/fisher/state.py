"""The Fisher of each group as it is known: averaged factors, and the values of a group formed from them when needed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fat_ray.fisher.flat import NOTHING, SQUARES, Flat
from fat_ray.fisher.groups import Block, Group

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
_PARTS = ("row", "column", "bias_row", "bias_column")

ONE = np.ones(1, np.float32)


@dataclass(frozen=True)
class State:
    """What is known after a collection, in float32.

    Attributes:
        factors: By (layer, part).
        squares: Squared gradients of parameters without factors, by (parameter, ``squares``).
    """

    factors: Flat
    squares: Flat

    def only(self, other: "State") -> "State":
        """What the other state has too."""
        return State(self.factors.only(other.factors), self.squares.only(other.squares))

    def over(self, other: "State", owners: Collection[str]) -> "State":
        """This state, and what only the other one has of some layers and parameters."""
        return State(self.factors.over(other.factors, owners), self.squares.over(other.squares, owners))


UNKNOWN = State(NOTHING, NOTHING)


def mean(first: State, second: State) -> State:
    """The mean of two states of the same keys, in float32."""
    pairs = (first.factors, second.factors), (first.squares, second.squares)
    return State(*(a.replaced(np.float32(0.5) * (a.data + b.data)) for a, b in pairs))


def at_scale_of(current: Sequence[State], previous: Sequence[State]) -> list[State]:
    """The previous states, each factor times a constant that gives it the mean of the current ones, over all halves.

    What is mixed of two windows must have one scale, or the noise of the mixture is that of the larger alone (docs/method.md, section 2).

    Args:
        current: The halves of this window.
        previous: Those of the other, of the same keys.
    """
    factors = _scaled([state.factors for state in current], [state.factors for state in previous])
    squares = _scaled([state.squares for state in current], [state.squares for state in previous])
    return [State(*both) for both in zip(factors, squares, strict=True)]


def _scaled(current: list[Flat], previous: list[Flat]) -> list[Flat]:
    now, before = (np.sum([flat.means() for flat in side], axis=0) for side in (current, previous))
    known = (now > 0) & (before > 0)
    scales = np.repeat(np.divide(now, before, out=np.ones_like(now), where=known), previous[0].layout.sizes)
    return [flat.replaced((scales * flat.data).astype(np.float32)) for flat in previous]


def group_values(group: Group, state: State, *, factored: bool) -> Floats32:
    """Diagonal Fisher values of a group, float32, flat, member after member."""
    if not factored:
        return _joined([state.squares[m.parameter, SQUARES].reshape(m.shape)[m.index].astype(np.float32).ravel() for m in group.members])
    return _layer_values(group, _parts(group.layer, state))


def _parts(layer: str, state: State) -> dict[str, Floats32]:
    return {part: state.factors[layer, part].astype(np.float32, copy=False) for part in _PARTS if (layer, part) in state.factors}


def _layer_values(group: Group, parts: Mapping[str, Floats32]) -> Floats32:
    return _joined([_factored_values(member, parts).ravel() for member in group.members])


def _joined(vectors: list[Floats32]) -> Floats32:
    return vectors[0] if len(vectors) == 1 else np.concatenate(vectors)


def _factored_values(block: Block, parts: Mapping[str, Floats32]) -> Floats32:
    """Products of factors in float32; vectors of a norm multiply entry by entry, weights as an outer product."""
    row, column = parts["row"], parts["column"]
    if block.role == "bias":
        bias: Floats32 = (parts.get("bias_row", row) * parts.get("bias_column", ONE))[block.index]
        return bias
    if row.ndim == len(block.shape):
        vector: Floats32 = (row * column)[block.index]
        return vector
    rows, columns = slice(0, block.shape[0]), slice(0, None)
    if block.dim == 0:
        rows = slice(block.start, block.stop)
    else:
        columns = slice(block.start, block.stop)
    owner = np.arange(rows.start, rows.stop) // (block.shape[0] // column.shape[0])
    # a weight with one channel group needs no copy of its column factor per row
    chosen = column.reshape(column.shape[0], *block.shape[1:])[:, columns]
    spread = chosen if column.shape[0] == 1 else chosen[owner]
    return row[rows].reshape(-1, *(1,) * (len(block.shape) - 1)) * spread
