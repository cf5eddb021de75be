"""Many named arrays as one, so that arithmetic on all of them takes one call; and running averages of them."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PartKey = tuple[str, str]
"""(layer, part of its factors), or (parameter, ``squares``)."""


SQUARES = "squares"

Arrays = dict[str, Array]
"""Arrays by one name each, as a checkpoint keeps them."""


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays with a common prefix and a slash before their names."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def below(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays with this prefix, without it."""
    return {name.removeprefix(f"{prefix}/"): array for name, array in arrays.items() if name.startswith(f"{prefix}/")}


def named(arrays: Mapping[PartKey, Array]) -> Arrays:
    """Arrays under names of one part each; `nested` undoes it."""
    return {f"{owner}/{part}": array for (owner, part), array in arrays.items()}


def nested(arrays: Arrays) -> dict[PartKey, Array]:
    """Arrays by the two parts of their names."""
    return {(owner, part): array for (owner, _, part), array in ((name.rpartition("/"), array) for name, array in arrays.items())}


class Layout:
    """Which arrays stand end to end.

    Args:
        shapes: Name and shape of each, in order.
    """

    def __init__(self, shapes: Mapping[PartKey, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = np.array([math.prod(shape) for shape in self.shapes.values()], np.int64)
        ends = self.sizes.cumsum()
        self.size = int(self.sizes.sum())
        self.starts = ends - self.sizes
        self.places = {key: slice(start, end) for key, start, end in zip(self.shapes, self.starts.tolist(), ends.tolist(), strict=True)}


class Flat(Mapping[PartKey, Array]):
    """Named arrays in one.

    Args:
        data: All of their values, one-dimensional.
        layout: Where each stands.
    """

    def __init__(self, data: Array, layout: Layout) -> None:
        self.data, self.layout = data, layout

    @classmethod
    def of(cls, arrays: Mapping[PartKey, Array], like: Layout | None = None) -> "Flat":
        """Copies arrays of one type; `like` is their layout if it is the same."""
        shapes = {key: array.shape for key, array in arrays.items()}
        layout = like if like is not None and list(like.shapes.items()) == list(shapes.items()) else Layout(shapes)
        return cls(np.concatenate([array.ravel() for array in arrays.values()]) if arrays else np.zeros(0), layout)

    def replaced(self, data: Array) -> "Flat":
        """Other data in the same places."""
        return Flat(data, self.layout)

    def only(self, keys: Iterable[PartKey]) -> "Flat":
        """What there is of these names, in their order; itself if that is all and in order already."""
        if isinstance(keys, Flat) and keys.layout is self.layout:
            return self
        chosen = [key for key in keys if key in self]
        return self if chosen == list(self.layout.shapes) else Flat.of({key: self[key] for key in chosen})

    def over(self, other: "Flat", owners: Collection[str]) -> "Flat":
        """These arrays, and what only the other one has of some owners."""
        if other.layout is self.layout:
            return self
        missing = {key: array for key, array in other.items() if key not in self and key[0] in owners}
        return Flat.of({**missing, **self}) if missing else self

    def means(self) -> NDArray[np.float64]:
        """The mean of each array."""
        if not len(self):
            return np.zeros(0)
        means: NDArray[np.float64] = np.add.reduceat(self.data, self.layout.starts, dtype=np.float64) / self.layout.sizes
        return means

    def __getitem__(self, key: PartKey) -> Array:
        """A view."""
        return self.data[self.layout.places[key]].reshape(self.layout.shapes[key])

    def __contains__(self, key: object) -> bool:
        return key in self.layout.places

    def __iter__(self) -> Iterator[PartKey]:
        return iter(self.layout.shapes)

    def __len__(self) -> int:
        return len(self.layout.shapes)


NOTHING = Flat.of({})


class RunningAverage:
    """Exponential averages `x̄ <- γ·x̄ + (1-γ)·x` of named arrays, which need not be there every time.

    They are kept in float64, so that the average of equal values is that value in float32.

    Args:
        kind: ``bias_corrected``: from 0, divided by `1 - γ^count`; ``decayed``: from the first value; ``reset``: from 1 at every update;
            ``none``: the value itself.
        decay: γ.
    """

    def __init__(self, kind: Literal["bias_corrected", "decayed", "reset", "none"], decay: float) -> None:
        self._kind, self._decay = kind, decay
        self._average, self._layout = NOTHING, NOTHING.layout
        self._absent: dict[PartKey, Array] = {}
        self._counts: dict[PartKey, int] = {}

    def update(self, arrays: Mapping[PartKey, Array]) -> Flat:
        """The averages after these values, float32."""
        values = Flat.of(arrays, like=self._layout)
        self._layout = values.layout
        if self._kind in ("none", "reset"):
            data = values.data.astype(np.float32, copy=False)  # a copy of our own
            if self._kind == "reset":
                data *= np.float32(1 - self._decay)
                data += np.float32(self._decay)
            return values.replaced(data)
        return self._include(values.replaced(values.data.astype(np.float64, copy=False)))

    def state(self) -> Arrays:
        """Averages and their counts, for `load_state`; nothing where nothing is remembered."""
        if not self._counts:
            return {}
        counts = {key: np.array(count) for key, count in self._counts.items()}
        return {**prefixed("average", named({**self._absent, **self._average})), **prefixed("count", named(counts))}

    def load_state(self, arrays: Arrays) -> None:
        """Goes on from what `state` returned."""
        self._average, self._absent = NOTHING, nested(below("average", arrays))
        self._counts = {key: int(count) for key, count in nested(below("count", arrays)).items()}

    def _include(self, values: Flat) -> Flat:
        average = self._before(values)
        average *= self._decay
        values.data *= 1 - self._decay
        average += values.data
        self._average = values.replaced(average)
        for key in values:
            self._counts[key] = self._counts.get(key, 0) + 1
        if self._kind == "decayed":
            return values.replaced(average.astype(np.float32))
        weights = [1 - self._decay ** self._counts[key] for key in values]
        return values.replaced((average / np.repeat(weights, values.layout.sizes)).astype(np.float32))

    def _before(self, values: Flat) -> Array:
        if values.layout is self._average.layout:
            return self._average.data
        self._absent.update(self._average)
        known = values.replaced(values.data.copy() if self._kind == "decayed" else np.zeros_like(values.data))
        for key in values:
            if key in self._absent:
                known[key][...] = self._absent.pop(key)
        return known.data
