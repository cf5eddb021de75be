"""Many named arrays as one, so that arithmetic on all of them takes one call; and running averages of them."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PartKey = tuple[str, str]
"""(layer, part of its factors), or (parameter, ``squares``)."""


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
    def of(cls, arrays: Mapping[PartKey, Array], like: "Flat | None" = None) -> "Flat":
        """Copies arrays of one type; `like` lends its layout if it is the same."""
        shapes = {key: array.shape for key, array in arrays.items()}
        layout = like.layout if like is not None and list(like.layout.shapes.items()) == list(shapes.items()) else Layout(shapes)
        return cls(np.concatenate([array.ravel() for array in arrays.values()]) if arrays else np.zeros(0), layout)

    def replaced(self, data: Array) -> "Flat":
        """Other data in the same places."""
        return Flat(data, self.layout)

    def only(self, keys: Iterable[PartKey]) -> "Flat":
        """What there is of these names, in their order; itself if that is all and in order already."""
        chosen = [key for key in keys if key in self]
        return self if chosen == list(self.layout.shapes) else Flat.of({key: self[key] for key in chosen})

    def means(self) -> NDArray[np.float64]:
        """The mean of each array."""
        means: NDArray[np.float64] = np.add.reduceat(self.data, self.layout.starts) / self.layout.sizes if len(self) else np.zeros(0)
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

    Args:
        kind: ``bias_corrected``: from 0, divided by `1 - γ^count`; ``decayed``: from the first value; ``reset``: from 1 at every update;
            ``none``: the value itself.
        decay: γ.
    """

    def __init__(self, kind: Literal["bias_corrected", "decayed", "reset", "none"], decay: float) -> None:
        self._kind, self._decay = kind, decay
        self._average = NOTHING
        self._absent: dict[PartKey, Array] = {}
        self._counts: dict[PartKey, int] = {}

    def update(self, arrays: Mapping[PartKey, Array]) -> Flat:
        """The averages after these values."""
        return self._include(Flat.of(arrays, like=self._average))

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
        if self._kind == "reset":
            values = values.replaced(self._decay + (1 - self._decay) * values.data)
        if self._kind in ("none", "reset"):
            self._average = values
            return values
        average = self._decay * self._before(values)
        np.multiply(values.data, 1 - self._decay, out=values.data)  # a copy of our own
        average += values.data
        self._average = values.replaced(average)
        for key in values:
            self._counts[key] = self._counts.get(key, 0) + 1
        if self._kind == "decayed":
            return self._average
        weights = [1 - self._decay ** self._counts[key] for key in values]
        return values.replaced(average / np.repeat(weights, values.layout.sizes))

    def _before(self, values: Flat) -> Array:
        if values.layout is self._average.layout:
            return self._average.data
        self._absent.update(self._average)
        start = values.data if self._kind == "decayed" else np.zeros_like(values.data)
        known = values.replaced(start.copy())
        for key in values:
            if key in self._absent:
                known[key][...] = self._absent.pop(key)
        return known.data
