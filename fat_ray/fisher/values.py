"""Distributions whose values are all there: a few sorted, many, such as element-wise averages, counted by their leading bits.

The bits of a non-negative float32 are in the order of the numbers. The range of each distribution's bits is divided into cells of a power
of two, and one pass counts the values in each; a threshold then needs only the values of its own cell looked at.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fat_ray.fisher.products import end_to_end, ranges
from fat_ray.fisher.ruler import Floats32, Ints

_MOST_CELL_BITS = 15
_SAMPLES = 256
_GOLDEN = 0.5 * (5**0.5 - 1)
"""Multiples of it, modulo 1, spread evenly and follow no period of the values."""


class Sorted:
    """D distributions of some thousand values each; see `products.Products` for what the methods return.

    Args:
        vectors: The values of each: one-dimensional, not empty, non-negative and finite.
    """

    def __init__(self, vectors: Sequence[Floats32]) -> None:
        self._values, self.sizes, self._first = end_to_end(vectors)

    def sample(self) -> Floats32:
        """Values at places spread over each distribution."""
        places = ((np.arange(_SAMPLES) + 0.5) / _SAMPLES * self.sizes[:, None]).astype(np.int64)
        sample: Floats32 = self._values[places + self._first[:, None]]
        return sample

    def extremes(self) -> Floats32:
        """Smallest and largest value of each."""
        extremes: Floats32 = self._values[np.stack([self._first, self._first + self.sizes - 1], axis=1)]
        return extremes

    def counts(self, thresholds: Floats32) -> Ints:
        """How many values lie below each threshold."""
        total = np.empty(thresholds.shape, np.int64)
        for row, (first, size) in enumerate(zip(self._first.tolist(), self.sizes.tolist(), strict=True)):
            total[row] = self._values[first : first + size].searchsorted(thresholds[row])
        return total

    def between(self, low: Floats32, high: Floats32) -> tuple[Floats32, Ints]:
        """The values from `low` (inclusive) to `high` (exclusive), and how many of each distribution they are."""
        start, stop = self.counts(np.stack([low, high], axis=1)).T
        return self._values[ranges(self._first + start, stop - start)], stop - start


class Values:
    """D distributions of many values each; see `products.Products` for what the methods return.

    Args:
        vectors: The values of each: one-dimensional, not empty, non-negative and finite; kept, not copied.
    """

    def __init__(self, vectors: Sequence[Floats32]) -> None:
        self._cells = [Cells(vector) for vector in vectors]
        self.sizes: Ints = np.array([vector.size for vector in vectors])

    def sample(self) -> Floats32:
        """Values at places spread over each distribution."""
        return np.stack([cells.values[(np.arange(_SAMPLES) * _GOLDEN % 1 * cells.values.size).astype(np.int64)] for cells in self._cells])

    def extremes(self) -> Floats32:
        """Smallest and largest value of each."""
        return np.array([[cells.first, cells.last] for cells in self._cells], np.int32).view(np.float32)

    def counts(self, thresholds: Floats32) -> Ints:
        """How many values lie below each threshold."""
        return np.stack([cells.counts(bits) for cells, bits in zip(self._cells, thresholds.view(np.int32), strict=True)])

    def between(self, low: Floats32, high: Floats32) -> tuple[Floats32, Ints]:
        """The values from `low` (inclusive) to `high` (exclusive), and how many of each distribution they are."""
        limits = np.stack([low, high], axis=1).view(np.uint32)
        found = [cells.between(*pair) for cells, pair in zip(self._cells, limits, strict=True)]
        return np.concatenate(found), np.array([inside.size for inside in found])


class Cells:
    """One distribution, counted by the leading bits of its values.

    Args:
        values: As above.
    """

    def __init__(self, values: Floats32) -> None:
        self.values, self._bits = values, values.view(np.int32)
        self.first, self.last = (int(limit) for limit in torch.aminmax(torch.from_numpy(self._bits)))
        self._shift = max(0, (self.last - self.first).bit_length() - min(_MOST_CELL_BITS, values.size.bit_length() - 2))
        self._left = np.zeros((self.last - self.first >> self._shift) + 2, np.int32)
        np.cumsum(torch.bincount(self._find(), minlength=self._left.size - 1).numpy(), out=self._left[1:])

    def _find(self) -> torch.Tensor:
        """The cell of each value: cheaper to find again than to keep."""
        cells = self._bits - np.int32(self.first)
        cells >>= np.int32(self._shift)
        return torch.from_numpy(cells)

    def counts(self, thresholds: NDArray[np.int32]) -> Ints:
        """How many values lie below thresholds, given by their bits."""
        # past the largest value one threshold is as good as another
        inside = np.minimum(np.maximum(thresholds, self.first), self.last + 1)
        wanted = (inside - self.first) >> self._shift
        near = np.zeros(self._left.size, np.bool_)
        near[wanted] = True
        chosen = torch.from_numpy(near).index_select(0, self._find()).numpy()
        beside = np.sort(self._bits[chosen])
        starts = (wanted << self._shift) + self.first
        total: Ints = self._left[wanted] + beside.searchsorted(inside) - beside.searchsorted(starts)
        return total

    def between(self, low: np.uint32, high: np.uint32) -> Floats32:
        """Values from one number (inclusive) to another, given by their bits."""
        return self.values[self._bits.view(np.uint32) - low < high - low]
