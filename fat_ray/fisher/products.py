"""Many distributions at once, each of all products of two vectors, of which none is ever formed.

The diagonal Fisher of a layer is an outer product S ⊗ H, so a group of R x C entries is known by R + C numbers. How many of its values lie
below a threshold is found by searching the longer vector, sorted, once per entry of the shorter one. Values that are not a product of
factors are one vector times the number 1. The vectors of all distributions stand end to end, whatever their lengths: the number of calls
of NumPy does not depend on the number of distributions.

Exactness: a value is the product of two float32 rounded to float32. In float64 the product is exact, so `fl32(s·h) < t` says that `s·h`
lies below the number midway between t and its predecessor (or on it, where that rounds down to the even of the two). Moving this midpoint
by 2^-50 of itself to the proper side makes the comparison strict. Unless they are equal, `s·h` and the midpoint differ by at least 2^-48,
so the rounding of a quotient in float64, 2^-53, can never put an h on the wrong side of it.

Speed: binary search waits for mispredicted branches. A `Ruler` divides the logarithms of the longer vector into cells so narrow that most
hold nothing: there, the position is read from a table, and only searches that end in an occupied cell are made.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fat_ray.fisher.ruler import Floats, Floats32, Ints, Ruler

SCRATCH = 1 << 16
"""Positions found at a time, unless one distribution needs more."""

_SAMPLES = 256
_GOLDEN = 0.5 * (5**0.5 - 1)
_LONG_PLACES = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
_SHORT_PLACES = np.arange(_SAMPLES) * _GOLDEN % 1
"""With those of the long vector, points that fill the unit square evenly (Kronecker's sequence)."""


class Products:
    """D distributions.

    Args:
        vectors: The two factors of each, in either order: one-dimensional, not empty, non-negative and finite. If several have the same
            object as their longer vector, it is sorted and measured once.

    Attributes:
        sizes: Number of values of each, (D,).
    """

    def __init__(self, vectors: Sequence[tuple[Floats32, Floats32]]) -> None:
        pairs = [(a, b) if a.size <= b.size else (b, a) for a, b in vectors]
        shared = {id(long): long for _, long in pairs}
        numbers = {key: number for number, key in enumerate(shared)}
        which = np.array([numbers[id(long)] for _, long in pairs])
        self._short, self._num_short, self._first_short = end_to_end([short for short, _ in pairs])
        self._long, num_long, first_long = end_to_end(list(shared.values()))
        self._num_long, self._first_long = num_long[which], first_long[which]
        self.sizes: Ints = self._num_short * self._num_long
        self._ruler = Ruler(self._short, self._num_short, self._long, num_long, which)

    def sample(self) -> Floats32:
        """Some values of each distribution, spread over it, (D, samples)."""
        short = self._short[(_SHORT_PLACES * self._num_short[:, None]).astype(np.int64) + self._first_short[:, None]]
        long = self._long[(_LONG_PLACES * self._num_long[:, None]).astype(np.int64) + self._first_long[:, None]]
        with np.errstate(over="ignore"):
            sample: Floats32 = short * long
        return sample

    def extremes(self) -> Floats32:
        """Smallest and largest value of each, (D, 2)."""
        places = [(self._first_short, self._first_long)]
        places.append((self._first_short + self._num_short - 1, self._first_long + self._num_long - 1))
        with np.errstate(over="ignore"):
            return np.stack([self._short[short] * self._long[long] for short, long in places], axis=1)

    def counts(self, thresholds: Floats32) -> Ints:
        """How many values lie below each threshold.

        Args:
            thresholds: (D, K), not negative; infinity has all values below it.

        Returns:
            (D, K).
        """
        barriers = _barriers(thresholds)
        marks = self._ruler.marks(barriers)
        total = np.empty(thresholds.shape, np.int64)
        for part, rows in self._parts(thresholds.shape[1]):
            starts = self._first_short[part] - rows.start
            total[part] = np.add.reduceat(self._ruler.places(rows, barriers, marks), starts, axis=0, dtype=np.int64)
        total -= (self._num_short * self._first_long)[:, None]
        total[thresholds == 0] = 0  # nothing lies below zero, not even zero times zero
        return total

    def between(self, low: Floats32, high: Floats32) -> tuple[Floats32, Ints]:
        """The values from `low` (inclusive) to `high` (exclusive).

        Args:
            low: (D,).
            high: (D,), not below `low`.

        Returns:
            The values, those of the first distribution first, and how many each one has, (D,).
        """
        barriers = _barriers(np.stack([low, high], axis=1))
        marks = self._ruler.marks(barriers)
        found = np.concatenate([self._ruler.places(rows, barriers, marks) for _, rows in self._parts(2)]).astype(np.int64)
        owner = self._ruler.owner
        nothing = np.stack([low, high], axis=1)[owner] == 0
        start, stop = np.where(nothing, self._first_long[owner, None], found).T
        lengths = stop - start
        with np.errstate(over="ignore"):
            values: Floats32 = np.repeat(self._short, lengths) * self._long[ranges(start, lengths)]
        return values, np.add.reduceat(lengths, self._first_short)

    def _parts(self, num_thresholds: int) -> Iterator[tuple[slice, slice]]:
        """Distributions to be searched together, and their entries of the short vectors."""
        ends = self._num_short.cumsum()
        start = done = 0
        while start < len(ends):
            stop = max(start + 1, int(np.searchsorted(ends, done + SCRATCH // num_thresholds, side="right")))
            yield slice(start, stop), slice(done, int(ends[stop - 1]))
            start, done = stop, int(ends[stop - 1])


def end_to_end(vectors: Sequence[Floats32]) -> tuple[Floats32, Ints, Ints]:
    """Each sorted, one after the other, with their lengths and where they start."""
    joined = np.concatenate(vectors)
    lengths = np.array([vector.size for vector in vectors])
    ends = lengths.cumsum()
    for start, stop in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
        joined[start:stop].sort()
    return joined, lengths, ends - lengths


def ranges(first: Ints, lengths: Ints) -> Ints:
    """So many consecutive numbers from each first one."""
    ends = lengths.cumsum()
    numbers: Ints = np.arange(int(ends[-1])) + np.repeat(first - ends + lengths, lengths)
    return numbers


def _barriers(thresholds: Floats32) -> Floats:
    """The float64 b per threshold t > 0 with `fl32(x) < t` if and only if `x < b`, for every product x of two float32."""
    bits = thresholds.view(np.int32)
    before = np.maximum(bits - 1, 0).view(np.float32)
    middle = 0.5 * (before.astype(np.float64) + thresholds)
    return middle * np.where(bits % 2 == 0, 1 - 2.0**-50, 1 + 2.0**-50)
