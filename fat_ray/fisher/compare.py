"""The distance of `drift`, exactly, between many pairs of distributions in one pass, without forming or sorting their values.

Percentiles and medians are found by bracketing: a sample suggests edges, counting says between which two the wanted rank lies, and only the
few values there are formed and sorted. A bracket that holds one value many times needs not even that: it is as narrow as float64 allows.
"""

from collections.abc import Sequence

import numpy as np

from fat_ray.fisher.drift import PERCENTILES, Centre, Floats, Floats32, Mode, divergence_of_counts, log_of, smallest_reaching, widened
from fat_ray.fisher.products import Ints, Products

_NEIGHBOURS = np.array([-40, -16, -6, -2, 2, 6, 16, 40])
"""Where edges are taken from a sample of 512, around the rank that is looked for."""


def js_divergences(reference: Products, current: Products, *, mode: Mode, bins: int, centre: Centre) -> Floats:
    """Square of `drift.js_distance` per pair: distribution i of `reference` with distribution i of `current`, (D,)."""
    states = [reference, current]
    if mode == "raw":
        low, high = _joint_extremes(states)
        shifts = [np.zeros_like(low)] * 2
    else:
        shifts = [_median_logs(state) if centre == "median" else np.zeros(len(state.extremes())) for state in states]
        low, high = _joint_percentiles(states, shifts)
    edges = np.linspace(low, np.where(high > low, high, low + 1e-3), bins + 1, axis=1)
    edges[:, -1] = np.nextafter(edges[:, -1], np.inf)
    thresholds = [widened(edges) if mode == "raw" else smallest_reaching(edges, shift[:, None]) for shift in shifts]
    counts = [np.diff(state.counts(marks), axis=1) for state, marks in zip(states, thresholds, strict=True)]
    return divergence_of_counts(counts[0], counts[1])


def _joint_extremes(states: list[Products]) -> tuple[Floats, Floats]:
    extremes = np.concatenate([state.extremes() for state in states], axis=1).astype(np.float64)
    return extremes.min(1), extremes.max(1)


def _median_logs(state: Products) -> Floats:
    samples = log_of(np.sort(state.sample(), axis=1))
    (middle,) = _order_statistics([state], [np.zeros(len(samples))], samples, [((state.size - 1) // 2, state.size // 2)])
    return middle.mean(1)


def _joint_percentiles(states: list[Products], shifts: list[Floats]) -> tuple[Floats, Floats]:
    """Linear interpolation with the rounding of numpy.percentile."""
    samples = np.concatenate([log_of(state.sample()) - shift[:, None] for state, shift in zip(states, shifts, strict=True)], axis=1)
    samples.sort(axis=1)
    last = sum(state.size for state in states) - 1
    ranks = [last * fraction for fraction in PERCENTILES]
    found = []
    neighbours = [(int(rank), min(int(rank) + 1, last)) for rank in ranks]
    for rank, ordered in zip(ranks, _order_statistics(states, shifts, samples, neighbours), strict=True):
        left, right = ordered.T
        fraction, difference = rank - int(rank), right - left
        found.append(right - difference * (1 - fraction) if fraction >= 0.5 else left + difference * fraction)
    return found[0], found[1]


def _order_statistics(states: Sequence[Products], shifts: Sequence[Floats], samples: Floats, ranks: list[tuple[int, int]]) -> list[Floats]:
    """The shifted logs at pairs of neighbouring ranks in the union of some distributions.

    Args:
        states: One or two.
        shifts: What is subtracted from the logs of each, (D,).
        samples: Shifted logs of a sample of the union, sorted, (D, samples).
        ranks: Pairs of ranks from 0, in ascending order.

    Returns:
        Per pair, both values, (D, 2).
    """
    edges = _edges(samples, sum(state.size for state in states), ranks)
    thresholds = [_with_ends(smallest_reaching(edges, shift[:, None])) for shift in shifts]
    below = np.sum([state.counts(marks) for state, marks in zip(states, thresholds, strict=True)], axis=0)
    rows = np.arange(len(edges))
    found = []
    for first, second in ranks:
        start = (below <= first).sum(1) - 1
        stop = (below <= second).sum(1)
        # edges lack the two ends: edge i has threshold i + 1
        low, high = (edges[rows, np.clip(end - 1, 0, edges.shape[1] - 1)] for end in (start, stop))
        single = (start > 0) & (stop == start + 1) & (stop <= edges.shape[1]) & (high == np.nextafter(low, np.inf))
        stop = np.where(single, start, stop)
        inside = _sorted_logs(states, shifts, [(marks[rows, start], marks[rows, stop]) for marks in thresholds])
        position = np.stack([first - below[rows, start], second - below[rows, start]], axis=1)
        position[single] = 0
        values = np.take_along_axis(inside, position, axis=1)
        values[single] = low[single, None]
        found.append(values)
    return found


def _edges(samples: Floats, size: int, ranks: list[tuple[int, int]]) -> Floats:
    """Strictly ascending edges around the ranks; an edge that repeats gives way by one step, so that equal values get their own bracket."""
    num_samples = samples.shape[1]
    around = {int((rank + 0.5) / size * num_samples + offset * num_samples / 512) for rank, _ in ranks for offset in _NEIGHBOURS}
    edges: Floats = samples[:, sorted({min(max(position, 0), num_samples - 1) for position in around})]
    edges = np.concatenate([edges, edges[:, -1:]], axis=1)
    for column in range(1, edges.shape[1]):
        edges[:, column] = np.maximum(edges[:, column], np.nextafter(edges[:, column - 1], np.inf))
    return edges


def _with_ends(thresholds: Floats32) -> Floats32:
    ends = np.zeros((len(thresholds), 1), np.float32)
    return np.concatenate([ends, thresholds, ends + np.float32(np.inf)], axis=1)


def _sorted_logs(states: Sequence[Products], shifts: Sequence[Floats], limits: list[tuple[Floats32, Floats32]]) -> Floats:
    """The shifted logs between two thresholds of each state, together, sorted and filled up with infinity, (D, most)."""
    parts = [state.between(low, high) for state, (low, high) in zip(states, limits, strict=True)]
    filled = np.sum([lengths for _, lengths in parts], axis=0)
    table = np.full((len(filled), max(1, int(filled.max()))), np.inf)
    offset: Ints = np.zeros(len(filled), np.int64)
    for (values, lengths), shift in zip(parts, shifts, strict=True):
        column = np.arange(values.size) + np.repeat(offset - lengths.cumsum() + lengths, lengths)
        table[np.repeat(np.arange(len(lengths)), lengths), column] = log_of(values) - np.repeat(shift, lengths)
        offset = offset + lengths
    table.sort(axis=1)
    return table
