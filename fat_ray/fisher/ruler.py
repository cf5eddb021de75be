"""Where quotients stand among the entries of sorted vectors, read from their logarithms instead of searched for."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Places = NDArray[np.int32]

_CELLS = 8
"""Cells per entry of a long vector."""

_CELLS_PER_DIVISOR = 128
"""At most: a vector that is hardly read needs no fine division."""

_MOST_CELLS = 1 << 15

_MARGIN = 0.05
"""Of a cell: how near its border an entry may come before the next cell counts as occupied too. Coordinates are off by less."""


class Ruler:
    """The quotients of barriers and the entries of short vectors, among the entries of long ones; several of each, end to end.

    The logarithms of each long vector are divided into cells of equal width. A table holds how many entries of all vectors lie left of each
    cell, inverted (bit by bit, so that it is negative) where the cell holds an entry or one stands at its border: there, it is searched.

    Args:
        short: The divisors, not negative, each vector sorted.
        num_short: How many belong to each distribution.
        long: The entries, not negative, each vector sorted.
        num_long: How many belong to each vector.
        which: The long vector of each distribution.
    """

    def __init__(self, short: Floats32, num_short: Ints, long: Floats32, num_long: Ints, which: Ints) -> None:
        self._short, self._long = short, long
        self.owner: Ints = np.repeat(np.arange(len(num_short)), num_short)
        num_divisors = np.bincount(which, weights=num_short).astype(np.int64)
        num_cells = np.minimum(np.minimum(_CELLS * num_long, _CELLS_PER_DIVISOR * num_divisors), _MOST_CELLS)
        divisors, entries = _logs(short), _logs(long)
        first_divisor, divisor_range = _spans(divisors, num_short)
        first_entry, entry_range = _spans(entries, num_long)
        most = np.zeros(len(num_long))
        np.maximum.at(most, which, divisor_range)
        # float32 coordinates up to 2^16 are off by less than a third of the margin
        scale = np.minimum(num_cells / entry_range, 2.0**16 / most)
        self._scale, self._origin = scale[which, None], (first_divisor + first_entry[which])[:, None]
        # a quotient by zero is infinite, and stands right of everything
        coordinates = _coordinates(divisors, first_divisor, scale[which], num_short, -(2.0**18)).astype(np.float32)
        self._divisors = torch.from_numpy(coordinates[:, None])
        last = num_cells + 4
        first_cell = (last + 2).cumsum() - last - 1
        table = _tabulate(_coordinates(entries, first_entry, scale, num_long, -2.5) + 2, num_long, first_cell, int(last[-1]))
        self._table = torch.from_numpy(table)
        self._last = torch.from_numpy(last.astype(np.float32)[which][self.owner, None])
        self._first_cell = torch.from_numpy(first_cell.astype(np.int32)[which][self.owner, None])

    def marks(self, barriers: Floats) -> Floats32:
        """Barriers of each distribution as the ruler is read, (D, K)."""
        marks = (_logs(np.maximum(barriers, 0.0)) - self._origin) * self._scale + 2
        return np.minimum(np.maximum(marks, -8.0), 2.0**16 + _MOST_CELLS + 16).astype(np.float32)

    def places(self, rows: slice, barriers: Floats, marks: Floats32) -> Places:
        """How many entries of all vectors together lie left of each quotient, or in vectors before its own.

        Args:
            rows: Divisors.
            barriers: Of all distributions, (D, K), positive or of no interest.
            marks: The same as `marks` returned them.

        Returns:
            (rows, K).
        """
        cells = torch.from_numpy(marks.take(self.owner[rows], axis=0))
        cells -= self._divisors[rows]
        cells.clamp_(min=0)
        torch.minimum(cells, self._last[rows], out=cells)
        index = cells.to(torch.int32)
        index += self._first_cell[rows]
        places: Places = self._table.index_select(0, index.view(-1)).numpy()
        unsure = np.flatnonzero(places < 0)
        row = unsure // barriers.shape[1]
        column = unsure - row * barriers.shape[1]
        row += rows.start
        with np.errstate(divide="ignore", over="ignore"):
            quotients = barriers.reshape(-1).take(self.owner.take(row) * barriers.shape[1] + column) / self._short.take(row)
        places[unsure] = self._search(index.view(-1).numpy().take(unsure), quotients)
        found: Places = places.reshape(index.shape)
        return found

    def _search(self, index: Places, quotients: Floats) -> Places:
        """What the table leaves open lies between the cells on both sides; few of them hold more than one entry."""
        table = self._table.numpy()
        low: Places = table.take(index - 1)
        high: Places = table.take(index + 2)
        low, high = np.maximum(low, ~low), np.maximum(high, ~high)
        below = self._long.take(low) < quotients
        low += below
        rest = np.flatnonzero(below & (low < high))
        while rest.size:
            low[rest], high[rest] = first, last = self._halve(low[rest], high[rest], quotients[rest])
            rest = rest[first < last]
        return low

    def _halve(self, low: Places, high: Places, quotients: Floats) -> tuple[Places, Places]:
        """Two rounds of bisection, without branches."""
        for _ in range(2):
            middle = (low + high) >> 1
            below = self._long.take(middle, mode="clip") < quotients
            low, high = np.where(below, np.minimum(middle + 1, high), low), np.where(below, high, middle)
        return low, high


def _tabulate(coordinates: Floats, num_long: Ints, first_cell: Ints, last: int) -> Places:
    """Cell c of vector v stands at `first_cell[v] + c`; zeros are in cell -1, left of all."""
    index = np.floor(coordinates).astype(np.int64)
    inside = np.subtract(coordinates, index, out=coordinates)
    index += np.repeat(first_cell, num_long)
    held = np.bincount(index, minlength=int(first_cell[-1]) + last + 2)
    table = np.zeros(held.size + 1, np.int32)
    np.cumsum(held, out=table[1:])
    occupied = held > 0
    occupied[(index + (inside > 1 - _MARGIN)) - (inside < _MARGIN)] = True
    np.invert(table[:-1], out=table[:-1], where=occupied)
    return table


def _coordinates(logs: Floats, first: Floats, scale: Floats, lengths: Ints, of_zero: float) -> Floats:
    """Logarithms as multiples of a cell's width, in their own place."""
    zeros = np.isneginf(logs)
    coordinates = np.subtract(logs, np.repeat(first, lengths), out=logs)
    coordinates *= np.repeat(scale, lengths)
    coordinates[zeros] = of_zero
    return coordinates


def _logs(values: NDArray[np.floating[Any]]) -> Floats:
    with np.errstate(divide="ignore"):
        logs: Floats = np.log2(values, dtype=np.float64)
    return logs


def _spans(logs: Floats, lengths: Ints) -> tuple[Floats, Floats]:
    """The smallest finite logarithm of each sorted vector, and how far the largest is from it; 0 and a little where there is none."""
    ends = lengths.cumsum()
    num_zeros = np.add.reduceat(np.isneginf(logs), ends - lengths, dtype=np.int64)
    first = logs[np.minimum(ends - lengths + num_zeros, ends - 1)]
    first = np.where(np.isfinite(first), first, 0.0)
    return first, np.maximum(logs[ends - 1] - first, 1e-3)
