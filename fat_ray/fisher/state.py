"""The Fisher of each group as it is known: running averages of factors, and the values of a group formed from them when needed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fat_ray.fisher.groups import Block, Group

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
PartKey = tuple[str, str]
"""(layer, part of its factors), or (parameter, ``squares``)."""

State = Mapping[PartKey, NDArray[Any]]
Arrays = dict[str, NDArray[Any]]
"""Named arrays, as a checkpoint keeps them."""

SQUARES = "squares"
_PARTS = ("row", "column", "bias_row", "bias_column")

_SMALL = 4096
"""Groups of fewer entries are compared as they are: that costs no more than two vectors do."""


class RunningAverage:
    """Exponential averages `x̄ <- γ·x̄ + (1-γ)·x`, one per key.

    Args:
        kind: ``bias_corrected``: from 0, divided by `1 - γ^count`; ``decayed``: from the first value; ``reset``: from 1 at every update;
            ``none``: the value itself.
        decay: γ.
    """

    def __init__(self, kind: Literal["bias_corrected", "decayed", "reset", "none"], decay: float) -> None:
        self._kind, self._decay = kind, decay
        self._average: dict[PartKey, Floats] = {}
        self._count: dict[PartKey, int] = {}

    def update(self, key: PartKey, value: Floats) -> Floats:
        """The average after this value."""
        if self._kind == "none":
            return value
        if self._kind == "reset":
            return self._decay + (1 - self._decay) * value
        start = value if self._kind == "decayed" else np.zeros_like(value)
        average = self._average[key] = self._decay * self._average.get(key, start) + (1 - self._decay) * value
        count = self._count[key] = self._count.get(key, 0) + 1
        return average / (1 - self._decay**count) if self._kind == "bias_corrected" else average

    def state(self) -> Arrays:
        """Averages and their counts, for `load_state`."""
        return {**prefixed("average", flat(self._average)), **prefixed("count", flat({k: np.array(n) for k, n in self._count.items()}))}

    def load_state(self, arrays: Arrays) -> None:
        """Goes on from what `state` returned."""
        self._average = nested(below("average", arrays))
        self._count = {key: int(count) for key, count in nested(below("count", arrays)).items()}


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays with a common prefix and a slash before their names."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def below(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays with this prefix, without it."""
    return {name.removeprefix(f"{prefix}/"): array for name, array in arrays.items() if name.startswith(f"{prefix}/")}


def flat(state: State) -> Arrays:
    """A state under names of one part each; `nested` undoes it."""
    return {f"{owner}/{part}": value for (owner, part), value in state.items()}


def nested(arrays: Arrays) -> dict[PartKey, NDArray[Any]]:
    """A state from its names."""
    return {(owner, part): value for (owner, _, part), value in ((name.rpartition("/"), value) for name, value in arrays.items())}


def at_scale_of(current: Sequence[State], previous: Sequence[State]) -> list[State]:
    """The previous states, each factor times a constant that gives it the mean of the current ones, over all halves.

    What is mixed of two windows must have one scale, or the noise of the mixture is that of the larger alone (docs/method.md, section 2).
    """
    scales: dict[PartKey, float] = {}
    for key in previous[0].keys() & current[0].keys():
        now, before = (sum(float(state[key].mean()) for state in states) for states in (current, previous))
        scales[key] = now / before if now > 0 and before > 0 else 1.0
    return [{key: scales.get(key, 1.0) * value for key, value in state.items()} for state in previous]


def is_known(group: Group, state: State, *, factored: bool) -> bool:
    """Whether the state holds what the group's values are formed from."""
    if factored:
        return (group.layer, "row") in state and (group.layer, "column") in state
    return all((member.parameter, SQUARES) in state for member in group.members)


class MeanState(Mapping[PartKey, NDArray[Any]]):
    """The mean of two states in float32, taken part by part when it is asked for."""

    def __init__(self, first: State, second: State) -> None:
        self._first, self._second = first, second
        self._kept: dict[PartKey, Floats32] = {}

    def __getitem__(self, key: PartKey) -> Floats32:
        """Factors are kept, squared gradients are not."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        mean: Floats32 = (0.5 * (self._first[key] + self._second[key])).astype(np.float32)
        if key[1] != SQUARES:
            self._kept[key] = mean
        return mean

    def __contains__(self, key: object) -> bool:
        return key in self._first and key in self._second

    def __iter__(self) -> Iterator[PartKey]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)


def group_values(group: Group, state: State, *, factored: bool) -> Floats32:
    """Diagonal Fisher values of a group, float32, flat, member after member."""
    if not factored:
        return np.concatenate([state[m.parameter, SQUARES].reshape(m.shape)[m.index].astype(np.float32).ravel() for m in group.members])
    parts = _parts(group, state)
    return np.concatenate([_factored_values(member, parts).ravel() for member in group.members])


def group_vectors(group: Group, state: State, *, factored: bool) -> tuple[Floats32, Floats32]:
    """Two float32 vectors whose products are the values of a group, in an order of their own; one is the number 1 where there are none."""
    if factored and group.elements >= _SMALL:
        vectors = _outer_factors(group, _parts(group, state))
        if vectors is not None:
            return vectors
    return np.ones(1, np.float32), group_values(group, state, factored=factored)


def _parts(group: Group, state: State) -> dict[str, Floats32]:
    return {part: state[group.layer, part].astype(np.float32, copy=False) for part in _PARTS if (group.layer, part) in state}


def _outer_factors(group: Group, parts: Mapping[str, Floats32]) -> tuple[Floats32, Floats32] | None:
    """Rows and columns of a block of a weight; bias entries of the same rows are one more column."""
    (weight, *others), row, column = group.members, parts["row"], parts["column"]
    if weight.role == "bias" or row.ndim == len(weight.shape) or column.shape[0] != 1 or (others and "bias_row" in parts):
        return None
    if weight.dim == 0:
        row, column = row[weight.start : weight.stop], column.ravel()
    else:
        column = column.reshape(weight.shape[1], -1)[weight.start : weight.stop].ravel()
    return row, np.concatenate([column, *(parts.get("bias_column", np.ones(1, np.float32)) for _ in others)])


def _factored_values(block: Block, parts: Mapping[str, Floats32]) -> Floats32:
    """Products of factors in float32; vectors of a norm multiply entry by entry, weights as an outer product."""
    row, column = parts["row"], parts["column"]
    if block.role == "bias":
        bias: Floats32 = (parts.get("bias_row", row) * parts.get("bias_column", np.ones(1, np.float32)))[block.index]
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
