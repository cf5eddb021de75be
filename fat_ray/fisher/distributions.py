"""Many distributions at once, of which it is asked how many values lie below thresholds, and which lie between two of them.

`Formed` ones are their values, sorted. `Products` are all products of two vectors, of which none is formed: the diagonal Fisher of a layer
is an outer product S ⊗ H, so a group of R x C entries is known by R + C numbers, and each threshold takes R searches among C sorted ones.
Their vectors stand end to end, whatever their lengths: the number of calls of NumPy does not depend on the number of distributions.

Exactness: a value is the product of two float32 rounded to float32. In float64 the product is exact, so `fl32(s·h) < t` says that `s·h`
lies below the number midway between t and its predecessor (or on it, where that rounds down to the even of the two). Moving this midpoint
by 2^-50 of itself to the proper side makes the comparison strict. Unless they are equal, `s·h` and the midpoint differ by at least 2^-48,
so the rounding of a quotient in float64, 2^-53, can never put an h on the wrong side of it.

Speed: binary search waits for mispredicted branches. A `Ruler` divides the logarithms of the longer vector into cells so narrow that most
hold nothing: there, the position is read from a table, and only searches that end in an occupied cell are made.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from fat_ray.fisher.ruler import Floats, Floats32, Ints, Ruler

SAMPLES = 256
_PLACES = (np.arange(SAMPLES) + 0.5) / SAMPLES
_SHORT_PLACES = np.arange(SAMPLES) * (0.5 * (5**0.5 - 1)) % 1
"""With those of the long vector, points that fill the unit square evenly (Kronecker's sequence)."""

_SEARCHES = 1 << 16
"""Made at a time, unless one entry needs more."""


class Located(Protocol):
    """Where thresholds stand in D distributions.

    Attributes:
        counts: How many values lie below each, (D, K).
    """

    counts: Ints

    def between(self, low: Ints, high: Ints) -> tuple[Floats32, Ints]:
        """The values from one threshold (inclusive) to another (exclusive), A times.

        Args:
            low: Number of the threshold, (A, D); -1: from the first value on.
            high: Likewise, not below `low`; K: up to the last value.

        Returns:
            The values in no order, those of the first pair of thresholds and its first distribution first, and how many each has, (A, D).
        """
        ...


class Distributions(Protocol):
    """D distributions of non-negative numbers.

    Attributes:
        sizes: Number of values of each, (D,).
    """

    sizes: Ints

    def sample(self) -> Floats32:
        """Some values of each, spread over it, (D, SAMPLES)."""
        ...

    def extremes(self) -> Floats32:
        """Smallest and largest value of each, (D, 2)."""
        ...

    def counts(self, thresholds: Floats32) -> Ints:
        """How many values lie below thresholds, (D, K), ascending and not negative; infinity has all finite values below it."""
        ...

    def locate(self, thresholds: Floats32) -> Located:
        """The same, for those who want to see values too."""
        ...


class Formed:
    """Distributions whose values are all there.

    Args:
        values: Those of all distributions, one after the other: not negative; sorted in place.
        sizes: How many each has, at least 1.
    """

    def __init__(self, values: Floats32, sizes: Sequence[int]) -> None:
        self.sizes: Ints = np.array(sizes, np.int64)
        ends = self.sizes.cumsum()
        self._values, self._first = values, ends - self.sizes
        # the bits of non-negative numbers are in the order of the numbers, and quicker to compare
        bits = values.view(np.int32)
        self._parts = [bits[start:end] for start, end in zip(self._first.tolist(), ends.tolist(), strict=True)]
        for part in self._parts:
            part.sort()

    def sample(self) -> Floats32:
        """Values at places spread evenly."""
        sample: Floats32 = self._values[(_PLACES * self.sizes[:, None]).astype(np.int64) + self._first[:, None]]
        return sample

    def extremes(self) -> Floats32:
        """Smallest and largest value of each."""
        extremes: Floats32 = self._values[np.stack([self._first, self._first + self.sizes - 1], axis=1)]
        return extremes

    def at(self, ranks: Ints) -> Floats32:
        """The values of some ranks, (D, K)."""
        values: Floats32 = self._values[self._first[:, None] + ranks]
        return values

    def ends(self, most: Ints) -> Iterator[tuple[Floats32, Floats32]]:
        """Of each, its smallest and its largest values, ascending: so many of either, or all there are."""
        for part, number in zip(self._parts, most.tolist(), strict=True):
            values = part.view(np.float32)
            yield values[:number], values[-number:]

    def counts(self, thresholds: Floats32) -> Ints:
        """By binary search."""
        counts = np.empty(thresholds.shape, np.int64)
        for row, (part, wanted) in enumerate(zip(self._parts, thresholds.view(np.int32), strict=True)):
            counts[row] = part.searchsorted(wanted)
        return counts

    def locate(self, thresholds: Floats32) -> Located:
        """By binary search."""
        return _LocatedFormed(self.counts(thresholds), self._values, self._first, self.sizes)


class _LocatedFormed:
    def __init__(self, counts: Ints, values: Floats32, first: Ints, sizes: Ints) -> None:
        self.counts, self._values, self._first, self._sizes = counts, values, first, sizes

    def between(self, low: Ints, high: Ints) -> tuple[Floats32, Ints]:
        start, stop = (_chosen(self.counts, ends, self._sizes) for ends in (low, high))
        lengths = stop - start
        return self._values[_ranges((self._first + start).ravel(), lengths.ravel())], lengths


class Products:
    """Distributions of all products of two vectors, all vectors end to end.

    Args:
        short: The first vector of each: one-dimensional, not empty, not negative, finite.
        long: Second vectors, which several distributions may share.
        which: The second vector of each, (D,).
    """

    def __init__(self, short: Sequence[Floats32], long: Sequence[Floats32], which: Ints) -> None:
        self._short, self._num_short, self._first_short = _end_to_end(short)
        self._long, num_long, first_long = _end_to_end(long)
        self._num_long, self._first_long = num_long[which], first_long[which]
        self.sizes: Ints = self._num_short * self._num_long
        self._ruler = Ruler(self._short, self._num_short, self._long, num_long, which)

    def sample(self) -> Floats32:
        """Values at places spread evenly over both vectors."""
        short = self._short[(_SHORT_PLACES * self._num_short[:, None]).astype(np.int64) + self._first_short[:, None]]
        long = self._long[(_PLACES * self._num_long[:, None]).astype(np.int64) + self._first_long[:, None]]
        with np.errstate(over="ignore"):
            sample: Floats32 = short * long
        return sample

    def extremes(self) -> Floats32:
        """Smallest and largest value of each."""
        places = [(self._first_short, self._first_long)]
        places.append((self._first_short + self._num_short - 1, self._first_long + self._num_long - 1))
        with np.errstate(over="ignore"):
            return np.stack([self._short[short] * self._long[long] for short, long in places], axis=1)

    def counts(self, thresholds: Floats32) -> Ints:
        """By a search in the longer vector per threshold and entry of the shorter one."""
        barriers = _barriers(thresholds)
        marks = self._ruler.marks(barriers)
        total = np.empty(thresholds.shape, np.int64)
        for part, rows in self._parts(thresholds.shape[1]):
            starts = self._first_short[part] - rows.start
            total[part] = np.add.reduceat(self._ruler.places(rows, barriers, marks), starts, axis=0, dtype=np.int64)
        total -= (self._num_short * self._first_long)[:, None]
        total[thresholds == 0] = 0  # nothing lies below zero, not even zero times zero
        return total

    def locate(self, thresholds: Floats32) -> Located:
        """In the same way."""
        barriers, owner = _barriers(thresholds), self._ruler.owner
        marks = self._ruler.marks(barriers)
        places = np.concatenate([self._ruler.places(rows, barriers, marks) for _, rows in self._parts(thresholds.shape[1])])
        places -= self._first_long[owner, None].astype(np.int32)
        places[thresholds[owner] == 0] = 0
        counts = np.add.reduceat(places, self._first_short, axis=0, dtype=np.int64)
        return _LocatedProducts(counts, places, self)

    def _parts(self, num_thresholds: int) -> Iterator[tuple[slice, slice]]:
        """Distributions to be searched together, and their entries of the short vectors."""
        ends = self._num_short.cumsum()
        start = done = 0
        while start < len(ends):
            stop = max(start + 1, int(np.searchsorted(ends, done + _SEARCHES // num_thresholds, side="right")))
            yield slice(start, stop), slice(done, int(ends[stop - 1]))
            start, done = stop, int(ends[stop - 1])

    def values_between(self, start: Ints, stop: Ints) -> tuple[Floats32, Ints]:
        """Products of each entry of the short vectors and some of its long vector's, A times.

        Args:
            start: The first of these, (A, entries of short vectors).
            stop: After the last.

        Returns:
            See `Located.between`.
        """
        lengths = stop - start
        entries = self._long[_ranges((start + self._first_long[self._ruler.owner]).ravel(), lengths.ravel())]
        with np.errstate(over="ignore"):
            values: Floats32 = np.repeat(np.tile(self._short, len(start)), lengths.ravel()) * entries
        return values, np.add.reduceat(lengths, self._first_short, axis=1)

    def ends(self, places: Ints, numbers: Ints) -> Ints:
        """Where thresholds stand among the entries of long vectors, (A, entries of short vectors), by their numbers, (A, D)."""
        owner = self._ruler.owner
        return _chosen(places, numbers[:, owner], self._num_long[owner])


class _LocatedProducts:
    def __init__(self, counts: Ints, places: Ints, products: Products) -> None:
        self.counts, self._places, self._products = counts, places, products

    def between(self, low: Ints, high: Ints) -> tuple[Floats32, Ints]:
        return self._products.values_between(*(self._products.ends(self._places, ends) for ends in (low, high)))


def _end_to_end(vectors: Sequence[Floats32]) -> tuple[Floats32, Ints, Ints]:
    """Each sorted, one after the other, with their lengths and where they start."""
    joined = np.concatenate(vectors)
    lengths = np.array([vector.size for vector in vectors])
    ends = lengths.cumsum()
    for start, stop in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
        joined[start:stop].sort()
    return joined, lengths, ends - lengths


def _chosen(counts: Ints, numbers: Ints, sizes: Ints) -> Ints:
    """The counts of some thresholds, (A, D), by their numbers; none below number -1, all below number K."""
    last = counts.shape[1]
    found = counts[np.arange(len(counts)), np.clip(numbers, 0, last - 1)]
    chosen: Ints = np.where(numbers < 0, 0, np.where(numbers == last, sizes, found))
    return chosen


def _ranges(first: Ints, lengths: Ints) -> Ints:
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
