"""Distributions whose values are all there, such as element-wise averages: counted by their leading bits, and hardly ever sorted.

The bits of a non-negative float32 are in the order of the numbers. The range of each distribution's bits is divided into cells of a power
of two, and one pass counts the values in each; a threshold then needs only the values of its own cell looked at.
"""

import numpy as np
from numpy.typing import NDArray

from fat_ray.fisher.products import Floats32, Ints

_CELL_BITS = 15
_CELLS = 1 << _CELL_BITS
_SAMPLES = 256
_GOLDEN = 0.5 * (5**0.5 - 1)
"""Multiples of it, modulo 1, spread evenly and follow no period of the values."""


class Values:
    """D distributions of one size; see `products.Products` for what the methods return.

    Args:
        values: (D, n), non-negative and finite; kept, not copied.
    """

    def __init__(self, values: Floats32) -> None:
        self._values = values
        self.sizes: Ints = np.full(len(values), values.shape[1])
        bits = values.view(np.int32)
        self._first, self._last = bits.min(axis=1, keepdims=True), bits.max(axis=1, keepdims=True)
        widths = [max(0, int(spread).bit_length() - _CELL_BITS) for spread in (self._last - self._first).ravel()]
        self._shift = np.array(widths, np.int32)[:, None]
        self._cells: NDArray[np.int32] = (bits - self._first) >> self._shift
        self._left: Ints = np.zeros((len(values), _CELLS + 1), np.int64)
        for left, cells in zip(self._left, self._cells, strict=True):
            np.cumsum(np.bincount(cells, minlength=_CELLS), out=left[1:])

    def sample(self) -> Floats32:
        """Values at places spread over each distribution."""
        chosen: Floats32 = self._values[:, (np.arange(_SAMPLES) * _GOLDEN % 1 * self._values.shape[1]).astype(np.int64)]
        return chosen

    def extremes(self) -> Floats32:
        """Smallest and largest value of each."""
        return np.concatenate([self._first, self._last], axis=1).view(np.float32)

    def counts(self, thresholds: Floats32) -> Ints:
        """How many values lie below each threshold."""
        # past the largest value one threshold is as good as another
        inside = np.minimum(np.maximum(thresholds.view(np.int32), self._first), self._last + 1)
        wanted = (inside - self._first) >> self._shift
        first = ((wanted << self._shift) + self._first).view(np.float32)
        total = np.take_along_axis(self._left, wanted, axis=1)
        for row, cells in enumerate(self._cells):
            near = np.zeros(_CELLS + 1, np.bool_)
            near[wanted[row]] = True
            beside = np.sort(self._values[row][near.take(cells)])
            total[row] += beside.searchsorted(thresholds[row]) - beside.searchsorted(first[row])
        return total

    def between(self, low: Floats32, high: Floats32) -> tuple[Floats32, Ints]:
        """The values from `low` (inclusive) to `high` (exclusive), and how many of each distribution they are."""
        inside = (self._values >= low[:, None]) & (self._values < high[:, None])
        return self._values[inside], inside.sum(axis=1)
