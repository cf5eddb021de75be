"""The distance of `drift`, exactly, between many pairs of distributions in one pass.

Percentiles and medians are found by bracketing: a sample suggests edges, counting says between which two the wanted rank lies, and only the
few values there are looked at. A bracket that holds one value many times needs not even that: it is as narrow as float64 allows.
"""

from collections.abc import Sequence

import numpy as np

from fat_ray.fisher.distributions import Distributions, Formed
from fat_ray.fisher.drift import PERCENTILES, Centre, Mode, divergence_of_counts, log_of, smallest_reaching, widened
from fat_ray.fisher.ruler import Floats, Floats32, Ints

_NEIGHBOURS = np.array([-40, -16, -6, -2, 2, 6, 16, 40])
"""Where edges are taken from a sorted sample, around the rank that is looked for."""


def js_divergences(reference: Distributions, current: Distributions, *, mode: Mode, bins: int, centre: Centre) -> Floats:
    """Square of `drift.js_distance` per pair: distribution i of `reference` with distribution i of `current`, (D,)."""
    states = [reference, current]
    shifts = np.zeros((2, len(reference.sizes)))
    if mode == "raw":
        low, high = _joint_extremes(states)
    else:
        if centre == "median":
            shifts = np.stack([_median_logs(state) for state in states])
        low, high = _joint_percentiles(states, shifts)
    edges = _bin_edges(low, np.where(high > low, high, low + 1e-3), bins)
    thresholds = [widened(edges)] * 2 if mode == "raw" else _thresholds(edges, shifts)
    below = np.stack([state.counts(marks) for state, marks in zip(states, thresholds, strict=True)])
    return divergence_of_counts(below[..., 1:] - below[..., :-1])


def _bin_edges(low: Floats, high: Floats, bins: int) -> Floats:
    """As numpy.linspace, to the bit; the last bin is closed on the right."""
    edges: Floats = np.arange(bins + 1) * ((high - low) / bins)[:, None] + low[:, None]
    edges[:, -1] = np.nextafter(high, np.inf)
    return edges


def _thresholds(edges: Floats, shifts: Floats) -> list[Floats32]:
    """`smallest_reaching` for each state, found once where nothing is shifted."""
    if not shifts.any():
        return [smallest_reaching(edges, 0.0)] * len(shifts)
    return [smallest_reaching(edges, shift[:, None]) for shift in shifts]


def _joint_extremes(states: list[Distributions]) -> tuple[Floats, Floats]:
    extremes = np.concatenate([state.extremes() for state in states], axis=1).astype(np.float64)
    return extremes.min(1), extremes.max(1)


def _median_logs(state: Distributions) -> Floats:
    ranks = np.stack([(state.sizes - 1) // 2, state.sizes // 2])
    if isinstance(state, Formed):
        middle = log_of(state.at(ranks.T)).T
    else:
        samples = log_of(np.sort(state.sample(), axis=1))
        middle = _order_statistics([state], np.zeros((1, len(samples))), samples, [0.5], ranks[None])[0]
    medians: Floats = middle.mean(0)
    return medians


def _joint_percentiles(states: list[Distributions], shifts: Floats) -> Floats:
    """The 1st and the 99th, by linear interpolation with the rounding of numpy.percentile, (2, D)."""
    last = np.sum([state.sizes for state in states], axis=0) - 1
    exact = last * np.array(PERCENTILES)[:, None]
    first = exact.astype(np.int64)
    ranks = np.stack([first, np.minimum(first + 1, last)], axis=1)
    formed = [state for state in states if isinstance(state, Formed)]
    if len(formed) == len(states):
        values = _at_ends(formed, shifts, ranks)
    else:
        samples = np.concatenate([log_of(state.sample()) - shift[:, None] for state, shift in zip(states, shifts, strict=True)], axis=1)
        samples.sort(axis=1)
        values = _order_statistics(states, shifts, samples, PERCENTILES, ranks)
    left, right = values.swapaxes(0, 1)
    weight, difference = exact - first, right - left
    found: Floats = np.where(weight >= 0.5, right - difference * (1 - weight), left + difference * weight)
    return found


def _at_ends(states: Sequence[Formed], shifts: Floats, ranks: Ints) -> Floats:
    """As `_order_statistics`, for ranks near both ends: they are among as many values of each state at that end."""
    last = np.sum([state.sizes for state in states], axis=0) - 1
    most = np.maximum(ranks[0, 1], last - ranks[1, 0]) + 1
    parts = [part for row in zip(*(state.ends(most) for state in states), strict=True) for end in zip(*row, strict=True) for part in end]
    # (D, ends, states), the order of the parts
    lengths = np.stack([np.minimum(most, state.sizes) for state in states], axis=-1)[:, None].repeat(2, axis=1)
    values: Floats | Floats32 = np.concatenate(parts)
    if shifts.any():
        values = log_of(values) - np.repeat(np.broadcast_to(shifts.T[:, None], lengths.shape), lengths.ravel())
    stops = lengths.sum(-1).cumsum()
    starts = stops - lengths.sum(-1).ravel()
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        values[start:stop].sort()
    from_start, from_end = starts[::2] + ranks[0], stops[1::2] - 1 - (last - ranks[1])
    found = values[np.stack([from_start, from_end])]
    return found if shifts.any() else log_of(found)


def _order_statistics(states: Sequence[Distributions], shifts: Floats, samples: Floats, fractions: Sequence[float], ranks: Ints) -> Floats:
    """The shifted logs at some ranks of the union of distributions.

    Args:
        states: One or two.
        shifts: What is subtracted from the logs of each, (states, D).
        samples: Shifted logs of a sample of the union, sorted, (D, samples).
        fractions: Fractions of the values, A of them.
        ranks: Two neighbouring ranks at each fraction, from 0, (A, 2, D).

    Returns:
        (A, 2, D).
    """
    edges = _edges(samples, fractions)
    rows, num_edges = np.arange(len(edges)), edges.shape[1]
    found = [state.locate(marks) for state, marks in zip(states, _thresholds(edges, shifts), strict=True)]
    counts = np.sum([each.counts for each in found], axis=0)
    # the edges around both ranks; -1 and the number of edges are the ends
    low = (counts <= ranks[:, 0, :, None]).sum(-1) - 1
    high = (counts <= ranks[:, 1, :, None]).sum(-1)
    at_low, at_high = (edges[rows, np.clip(number, 0, num_edges - 1)] for number in (low, high))
    single = (low >= 0) & (high == low + 1) & (high < num_edges) & (at_high == np.nextafter(at_low, np.inf))
    inside, first = _sorted_logs([each.between(low, np.where(single, low, high)) for each in found], shifts)
    below = np.where(low < 0, 0, counts[rows, np.maximum(low, 0)])
    place = np.where(single[:, None], 0, first[:, None] + ranks - below[:, None])
    return np.where(single[:, None], at_low[:, None], inside[place])


def _edges(samples: Floats, fractions: Sequence[float]) -> Floats:
    """Strictly ascending edges around the fractions; an edge that repeats gives way by one step: equal values get their own bracket."""
    num_samples = samples.shape[1]
    around = np.add.outer(np.multiply(fractions, num_samples), _NEIGHBOURS).astype(np.int64)
    edges: Floats = samples[:, np.unique(np.clip(around, 0, num_samples - 1))]
    edges = np.concatenate([edges, np.nextafter(edges[:, -1:], np.inf)], axis=1)
    if (edges[:, 1:] > edges[:, :-1]).all():
        return edges
    for column in range(1, edges.shape[1]):
        edges[:, column] = np.maximum(edges[:, column], np.nextafter(edges[:, column - 1], np.inf))
    return edges


def _sorted_logs(parts: Sequence[tuple[Floats32, Ints]], shifts: Floats) -> tuple[Floats, Ints]:
    """The shifted logs of what lies between thresholds in some states, sorted together.

    Args:
        parts: Of each state, what `Located.between` returned.
        shifts: Of each, (states, D).

    Returns:
        Those of the first pair of thresholds and its first distribution first, and where each begin, (A, D).
    """
    lengths = np.sum([found for _, found in parts], axis=0)
    ends = lengths.cumsum()
    first: Ints = ends - lengths.ravel()
    joined = np.full(int(ends[-1]) + 1, np.inf)
    free = first.copy()
    for (values, found), shift in zip(parts, shifts, strict=True):
        each = found.ravel()
        places = np.arange(values.size) + np.repeat(free - each.cumsum() + each, each)
        joined[places] = log_of(values) - np.repeat(np.tile(shift, len(found)), each)
        free += each
    for start, stop in zip(first.tolist(), free.tolist(), strict=True):
        joined[start:stop].sort()
    return joined, first.reshape(lengths.shape)
