"""Many distributions at once, each of all products of two short vectors, of which none is ever formed.

The diagonal Fisher of a layer is an outer product S ⊗ H, so a group of R x C entries is known by R + C numbers. How many of its values lie
below a threshold is found by searching the longer vector, sorted, once per entry of the shorter one. Values that are not a product of
factors are one vector times the number 1.

Exactness: a value is the product of two float32 rounded to float32. In float64 the product is exact, so `fl32(s·h) < t` says that `s·h`
lies below the number midway between t and its predecessor (or on it, where that rounds down to the even of the two). Moving this midpoint
by 2^-50 of itself to the proper side makes the comparison strict. Unless they are equal, `s·h` and the midpoint differ by at least 2^-48,
so the rounding of a quotient in float64, 2^-53, can never put an h on the wrong side of it.

Speed: binary search waits for mispredicted branches. A `Ruler` divides the logarithms of the longer vector into cells so narrow that most
hold nothing: there, the position is read from a table, and only searches that end in an occupied cell are made.
"""

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

SCRATCH = 1 << 15
"""Positions found at a time; about 0.5 MiB of intermediate numbers."""

_CELLS = 8
"""Cells of a ruler per entry of the vector."""

_MOST_CELLS = 1 << 15

_MARGIN = 0.05
"""Of a cell: how near its border an entry may come before the next cell counts as occupied too. Coordinates are off by less."""

_WORTHWHILE = 12
"""Shorter vectors than this are searched for directly."""

_SAMPLES = 16
"""Entries of each vector that the sample takes."""


class Products:
    """D distributions of one shape.

    Args:
        rows: One factor of each, (D, R), non-negative and finite.
        columns: The other, (D, C).
        lengths: How many columns each one has, the rest being infinite, (D,); only with one row.

    Attributes:
        sizes: Number of values of each, (D,).
    """

    def __init__(self, rows: Floats32, columns: Floats32, lengths: Ints | None = None) -> None:
        short, long = (rows, columns) if rows.shape[1] <= columns.shape[1] else (columns, rows)
        self._short: Floats = np.sort(short, axis=1).astype(np.float64)
        self._long: Floats = np.sort(long, axis=1).astype(np.float64)
        self._lengths = np.full(len(long), long.shape[1]) if lengths is None else lengths
        self.sizes: Ints = short.shape[1] * self._lengths
        self._ruler = Ruler(self._short, self._long) if self._short.shape[1] >= _WORTHWHILE else None

    def sample(self) -> Floats32:
        """A few hundred values of each distribution, spread over it: the products of quantiles of the two vectors, (D, samples)."""
        short = _spread(self._short, np.full(len(self._short), self._short.shape[1]), _SAMPLES)
        long = _spread(self._long, self._lengths, _SAMPLES**2 // short.shape[1])
        return _rounded(short[:, :, None] * long[:, None, :]).reshape(len(short), -1)

    def extremes(self) -> Floats32:
        """Smallest and largest value of each, (D, 2)."""
        largest = self._long[np.arange(len(self._long)), self._lengths - 1]
        return _rounded(np.stack([self._short[:, 0] * self._long[:, 0], self._short[:, -1] * largest], axis=1))

    def counts(self, thresholds: Floats32) -> Ints:
        """How many values lie below each threshold.

        Args:
            thresholds: (D, K), not negative; infinity has all values below it.

        Returns:
            (D, K).
        """
        barriers = _barriers(thresholds)
        total = np.empty(thresholds.shape, np.int64)
        rows = max(1, SCRATCH // (self._short.shape[1] * thresholds.shape[1]))
        columns = max(1, SCRATCH // self._short.shape[1])
        for row in range(0, len(total), rows):
            for column in range(0, barriers.shape[1], columns):
                part = slice(row, row + rows), slice(column, column + columns)
                total[part] = self._search(part[0], barriers[part]).sum(-1)
        return total

    def between(self, low: Floats32, high: Floats32) -> tuple[Floats32, Ints]:
        """The values from `low` (inclusive) to `high` (exclusive).

        Args:
            low: (D,).
            high: (D,), not below `low`.

        Returns:
            The values, those of the first distribution first, and how many each one has, (D,).
        """
        found = self._search(np.s_[:], _barriers(np.stack([low, high], axis=1))).astype(np.int64)
        start, stop = found[:, 0], found[:, 1]
        lengths = (stop - start).ravel()
        ends = lengths.cumsum()
        first = start + np.arange(len(start))[:, None] * self._long.shape[1]
        index = np.arange(int(ends[-1])) + np.repeat(first.ravel() - ends + lengths, lengths)
        values = np.repeat(self._short.ravel(), lengths) * self._long.ravel()[index]
        return _rounded(values), (stop - start).sum(1)

    def _search(self, which: slice, barriers: Floats) -> NDArray[np.int32]:
        """Per barrier and entry of the short vector, how many entries of the long one stay below: (D, K, short)."""
        short, long = self._short[which], self._long[which]
        with np.errstate(divide="ignore", over="ignore"):
            if self._ruler is None:
                wanted = np.divide(barriers[:, :, None], short[:, None, :], order="C").reshape(len(short), -1)
                found: NDArray[np.int32] = torch.searchsorted(torch.from_numpy(long), torch.from_numpy(wanted), out_int32=True).numpy()
                return found.reshape(*barriers.shape, -1)
            positions = self._ruler.read(which, barriers)
            flat = positions.reshape(-1)
            unsure = np.flatnonzero(flat < 0)
            pair, entry = np.divmod(unsure, short.shape[1])
            row = pair // barriers.shape[1]
            wanted = barriers.reshape(-1)[pair] / short.reshape(-1)[entry + row * short.shape[1]]
        ends = np.searchsorted(row, np.arange(len(short) + 1))
        for ordered, start, stop in zip(long, ends[:-1], ends[1:], strict=True):
            flat[unsure[start:stop]] = ordered.searchsorted(wanted[start:stop])
        return positions


class Ruler:
    """Where a quotient stands among the entries of a vector, read from its logarithm.

    Args:
        short: Divisors, (D, R), not negative.
        long: The vectors, (D, C), not negative.
    """

    def __init__(self, short: Floats, long: Floats) -> None:
        num_cells = min(_CELLS * long.shape[1], _MOST_CELLS)
        divisors, entries = _logs(short), _logs(long)
        (first_divisor, divisor_range), (first_entry, entry_range) = _spans(divisors), _spans(entries)
        # float32 coordinates up to 2^16 are off by less than a third of the margin
        self._scale = np.minimum(num_cells / entry_range, 2.0**16 / divisor_range)[:, None]
        self._origin = (first_divisor + first_entry)[:, None]
        self._last = num_cells + 4
        # a quotient by zero is infinite, and stands right of everything
        divisors = np.where(short > 0, (divisors - first_divisor[:, None]) * self._scale, -(2.0**18))
        self._divisors = divisors.astype(np.float32)
        self._table = self._tabulate(np.where(long > 0, (entries - first_entry[:, None]) * self._scale + 2, -0.5))

    def _tabulate(self, coordinates: Floats) -> NDArray[np.int32]:
        """Entries left of each cell, or -1 for a cell that holds an entry or has one at its border; zeros are left of all."""
        width = self._last + 1
        rows = np.arange(len(coordinates))[:, None] * (width + 1) + 1
        cells = np.floor(coordinates).astype(np.int64)
        inside = coordinates - cells
        neighbours = cells + (inside > 1 - _MARGIN) - (inside < _MARGIN)
        held = np.bincount((rows + cells).ravel(), minlength=len(rows) * (width + 1)).reshape(len(rows), -1)
        occupied = held > 0
        occupied.reshape(-1)[(rows + neighbours).ravel()] = True
        table: NDArray[np.int32] = np.cumsum(held, axis=1, out=held)[:, :-1].astype(np.int32)
        table[occupied[:, 1:]] = -1
        return table

    def read(self, which: slice, barriers: Floats) -> NDArray[np.int32]:
        """How many entries lie below each quotient of barrier and divisor, or -1 where the table does not tell: (D, K, R)."""
        table = self._table[which]
        marks = (_logs(np.maximum(barriers, 0.0)) - self._origin[which]) * self._scale[which] + 2
        marks = np.minimum(np.maximum(marks, -8.0), 2.0**16 + self._last + 8).astype(np.float32)
        places = marks[:, :, None] - self._divisors[which][:, None, :]
        np.maximum(np.minimum(places, self._last, out=places), 0, out=places)
        index = places.astype(np.int64)
        index += (np.arange(len(table)) * table.shape[1])[:, None, None]
        found: NDArray[np.int32] = table.reshape(-1).take(index)
        found[barriers < 0] = 0
        return found


def _logs(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        logs: Floats = np.log2(values)
    return logs


def _spans(logs: Floats) -> tuple[Floats, Floats]:
    """The smallest finite logarithm of each row, and how far the largest is from it; 0 and a little where there is none."""
    first = np.min(logs, axis=1, where=np.isfinite(logs), initial=np.inf)
    first = np.where(np.isfinite(first), first, 0.0)
    return first, np.maximum(np.max(logs, axis=1) - first, 1e-3)


def _barriers(thresholds: Floats32) -> Floats:
    """The float64 b per threshold t >= 0 with `fl32(x) < t` if and only if `x < b`, for every product x of two float32."""
    bits = thresholds.view(np.int32)
    before = np.maximum(bits - 1, 0).astype(np.int32).view(np.float32)
    middle = 0.5 * (before.astype(np.float64) + thresholds)
    barriers: Floats = middle * np.where(bits % 2 == 0, 1 - 2.0**-50, 1 + 2.0**-50)
    barriers[bits == 0] = -1.0  # nothing lies below zero, not even zero times zero
    return barriers


def _rounded(products: Floats) -> Floats32:
    with np.errstate(over="ignore"):
        return products.astype(np.float32)


def _spread(ordered: Floats, lengths: Ints, most: int) -> Floats:
    """At most so many entries of each row, in the middles of equal parts of its length."""
    chosen = (np.arange(min(most, ordered.shape[1])) + 0.5) / min(most, ordered.shape[1])
    spread: Floats = np.take_along_axis(ordered, (chosen * lengths[:, None]).astype(np.int64), axis=1)
    return spread
