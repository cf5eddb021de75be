"""Forms the Fisher values of groups from the flat factors of a state: as vectors whose products they are, or as the values themselves.

Where the factors of a group stand is the same in every collection, so it is found once, as slices of the flat array. All that is left to
an update are a few calls of NumPy per group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fat_ray.fisher.distributions import Distributions, Formed, Products
from fat_ray.fisher.flat import SQUARES, Layout
from fat_ray.fisher.groups import Block, Group

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Parts = tuple[slice | None, ...]
"""Slices of data that stand one after the other; None is the number 1."""

_ONE = np.ones(1, np.float32)

_FORMED = 24_000
"""Up to so many values, forming and sorting them is quicker than searching among the entries of vectors."""

_TINY = 256
"""Values that are gathered for many groups at once, not formed group by group."""


@dataclass(frozen=True)
class Term:
    """The values of one member of a group, rows times columns, (R, width).

    Attributes:
        rows: Where the factor of the rows stands in the data.
        columns: Where the factor of the columns stands: of all rows, or of each channel group; None: it is 1.
        width: Columns.
        owner: The channel group of each row, where there are several but not one per row.
    """

    rows: slice | Ints
    columns: slice | Ints | None
    width: int = 1
    owner: Ints | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        return _length(self.rows) * self.width

    @property
    def is_outer(self) -> bool:
        """Whether all rows share their columns."""
        shared = self.columns is None or (isinstance(self.columns, slice) and _length(self.columns) == self.width)
        return isinstance(self.rows, slice) and shared

    def vectors(self, data: NDArray[Any], one: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows, (R, 1), and columns, (1 or R, width), which are `one` where they are none."""
        columns = (one if self.columns is None else data[self.columns]).reshape(-1, self.width)
        return data[self.rows].reshape(-1, 1), columns if self.owner is None else columns[self.owner]


Recipe = tuple[Term, ...]
"""How the values of a group are formed: one term per member."""


def size_of(recipe: Recipe) -> int:
    """Number of values."""
    return sum(term.size for term in recipe)


def is_tiny(recipe: Recipe) -> bool:
    """Whether it is formed together with others."""
    return size_of(recipe) <= _TINY


def is_product(recipe: Recipe) -> bool:
    """Whether it is told by two vectors, of which all values are products, and not formed."""
    return size_of(recipe) > _FORMED and all(term.is_outer and term.rows == recipe[0].rows for term in recipe)


class Batch:
    """Groups of one kind that are compared at once.

    Args:
        members: Their numbers.
        recipes: How each is formed: all of them tiny, all products, or none.
        num_data: Length of the data.
    """

    def __init__(self, members: Sequence[int], recipes: Sequence[Recipe], num_data: int) -> None:
        self.members, self._recipes = list(members), recipes
        self.sizes = [size_of(recipe) for recipe in recipes]
        self.is_product = is_product(recipes[0])
        self._gather = _Gather(recipes, num_data) if is_tiny(recipes[0]) else None
        self._pairs = _Pairs(recipes) if self.is_product else None

    def distributions(self, sides: Sequence[Floats32]) -> Distributions:
        """All groups under the first side, then under the next.

        Args:
            sides: Data of states.
        """
        if self._pairs is not None:
            return Products(*self._pairs.vectors(sides))
        values = [self.values(data) for data in sides]
        return Formed(values[0] if len(values) == 1 else np.concatenate(values), self.sizes * len(sides))

    def values(self, data: Floats32) -> Floats32:
        """The values of all groups, group after group, term after term and row by row."""
        if self._gather is not None:
            return self._gather.values(data)
        values = np.empty(sum(self.sizes), np.float32)
        start = 0
        for recipe in self._recipes:
            start = _fill(values, start, recipe, data)
        return values

    def values_of(self, number: int, data: Floats32) -> Floats32:
        """Those of one group, by its number in the batch."""
        values = np.empty(self.sizes[number], np.float32)
        _fill(values, 0, self._recipes[number], data)
        return values


def _fill(values: Floats32, start: int, recipe: Recipe, data: Floats32) -> int:
    for term in recipe:
        rows, columns = term.vectors(data, _ONE)
        stop = start + len(rows) * term.width
        np.multiply(rows, columns, out=values[start:stop].reshape(len(rows), term.width))
        start = stop
    return start


class _Gather:
    """The values of small groups, entry by entry.

    Args:
        recipes: How each is formed.
        num_data: Length of the data.
    """

    def __init__(self, recipes: Sequence[Recipe], num_data: int) -> None:
        numbers, none = np.arange(num_data, dtype=np.int32), np.full(1, -1, np.int32)
        pairs = [np.broadcast_arrays(*term.vectors(numbers, none)) for recipe in recipes for term in recipe]
        self._rows, columns = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
        self._multiplied = np.flatnonzero(columns >= 0).astype(np.int32)
        self._columns = columns[self._multiplied]

    def values(self, data: Floats32) -> Floats32:
        """Group after group."""
        values: Floats32 = data[self._rows]
        values[self._multiplied] *= data[self._columns]
        return values


class _Pairs:
    """The two vectors of each of some groups; longer vectors that are the same are taken once.

    Args:
        recipes: Products.
    """

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self._short: list[Parts] = []
        self._long: dict[tuple[tuple[int, int] | None, ...], Parts] = {}
        which = []
        for recipe in recipes:
            pair: list[Any] = [(recipe[0].rows,), tuple(term.columns for term in recipe)]
            short, long = sorted(pair, key=lambda parts: sum(map(_length, parts)))
            self._short.append(short)
            key = tuple(None if part is None else (part.start, part.stop) for part in long)
            self._long.setdefault(key, long)
            which.append(list(self._long).index(key))
        self._which = np.array(which)

    def vectors(self, sides: Sequence[Floats32]) -> tuple[list[Floats32], list[Floats32], Ints]:
        """What `Products` takes: shorter vectors, longer vectors, and which of these belongs to each."""
        short = [_taken(data, parts) for data in sides for parts in self._short]
        long = [_taken(data, parts) for data in sides for parts in self._long.values()]
        return short, long, np.concatenate([self._which + number * len(self._long) for number in range(len(sides))])


def _taken(data: Floats32, parts: Parts) -> Floats32:
    vectors = [_ONE if part is None else data[part] for part in parts]
    return vectors[0] if len(vectors) == 1 else np.concatenate(vectors)


def recipe_of(group: Group, layout: Layout, *, factored: bool) -> Recipe:
    """The recipe of a group.

    Args:
        group: Which.
        layout: Of the factors of a state, or of its squares.
        factored: Which of the two.
    """
    if factored:
        return tuple(_term(member, group.layer, layout) for member in group.members)
    return tuple(Term(_along(member, layout.places[member.parameter, SQUARES]), None) for member in group.members)


def _term(block: Block, layer: str, layout: Layout) -> Term:
    """See `factors` for where the factors of a layer stand."""
    row, column = layout.places[layer, "row"], layout.places[layer, "column"]
    if block.role == "bias":
        return Term(_along(block, layout.places.get((layer, "bias_row"), row)), layout.places.get((layer, "bias_column")))
    if len(layout.shapes[layer, "row"]) == len(block.shape):  # a norm: entry times entry, or times a number for all
        return Term(_along(block, row), column if _length(column) == 1 else _along(block, column))
    num_rows, num_groups = block.shape[0], layout.shapes[layer, "column"][0]
    width = math.prod(block.shape[1:])
    rows_per_group = num_rows // num_groups
    if block.dim == 0:
        first, last = (block.start, block.stop) if rows_per_group == 1 else (0, num_groups)
        owner = None if num_groups == 1 or rows_per_group == 1 else np.arange(block.start, block.stop) // rows_per_group
        rows = slice(row.start + block.start, row.start + block.stop)
        return Term(rows, slice(column.start + first * width, column.start + last * width), width, owner)
    inner = width // block.shape[1]
    start, stop = block.start * inner, block.stop * inner
    if num_groups == 1:
        return Term(row, slice(column.start + start, column.start + stop), stop - start)
    columns = column.start + np.arange(num_groups * width).reshape(num_groups, width)[:, start:stop]
    return Term(row, columns.ravel(), stop - start, None if rows_per_group == 1 else np.arange(num_rows) // rows_per_group)


def _along(block: Block, place: slice) -> slice | Ints:
    """Where the entries of a block stand, of a vector that has an entry for each of its tensor's."""
    if not block.shape:
        return place
    inner = math.prod(block.shape[block.dim + 1 :])
    if math.prod(block.shape[: block.dim]) == 1:
        return slice(place.start + block.start * inner, place.start + block.stop * inner)
    chosen: Ints = place.start + np.arange(math.prod(block.shape)).reshape(block.shape)[block.index].ravel()
    return chosen


def _length(places: slice | Ints | None) -> int:
    if places is None:
        return 1
    return int(places.stop - places.start) if isinstance(places, slice) else places.size
