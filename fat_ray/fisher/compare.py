"""The distance of `drift`, exactly, between many pairs of distributions in one pass, without forming or sorting their values.

Percentiles and medians are found by bracketing: a sample suggests edges, counting says between which two the wanted rank lies, and only the
few values there are formed and sorted. A bracket that holds one value many times needs not even that: it is as narrow as float64 allows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fat_ray.fisher.drift import PERCENTILES, Centre, Floats, Floats32, Mode, divergence_of_counts, log_of, smallest_reaching, widened
from fat_ray.fisher.products import Products
from fat_ray.fisher.ruler import Ints
from fat_ray.fisher.values import Sorted, Values

Distributions = Products | Sorted | Values

_NEIGHBOURS = np.array([-40, -16, -6, -2, 2, 6, 16, 40])
"""Where edges are taken from a sample of 512, around the rank that is looked for."""


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
    edges = np.linspace(low, np.where(high > low, high, low + 1e-3), bins + 1, axis=1)
    edges[:, -1] = np.nextafter(edges[:, -1], np.inf)
    thresholds = [widened(edges)] * 2 if mode == "raw" else _thresholds(edges, shifts)
    counts = [np.diff(state.counts(marks), axis=1) for state, marks in zip(states, thresholds, strict=True)]
    return divergence_of_counts(counts[0], counts[1])


def _thresholds(edges: Floats, shifts: Floats) -> Floats32:
    """`smallest_reaching` for each state, (states, D, edges)."""
    return smallest_reaching(np.broadcast_to(edges, (len(shifts), *edges.shape)), shifts[:, :, None])


def _joint_extremes(states: list[Distributions]) -> tuple[Floats, Floats]:
    extremes = np.concatenate([state.extremes() for state in states], axis=1).astype(np.float64)
    return extremes.min(1), extremes.max(1)


def _median_logs(state: Distributions) -> Floats:
    samples = log_of(np.sort(state.sample(), axis=1))
    wanted = Wanted(0.5, (state.sizes - 1) // 2, state.sizes // 2)
    (middle,) = _order_statistics([state], np.zeros((1, len(samples))), samples, [wanted])
    medians: Floats = middle.mean(1)
    return medians


def _joint_percentiles(states: list[Distributions], shifts: Floats) -> tuple[Floats, Floats]:
    """Linear interpolation with the rounding of numpy.percentile."""
    samples = np.concatenate([log_of(state.sample()) - shift[:, None] for state, shift in zip(states, shifts, strict=True)], axis=1)
    samples.sort(axis=1)
    last = np.sum([state.sizes for state in states], axis=0) - 1
    wanted = []
    for fraction in PERCENTILES:
        first = (last * fraction).astype(np.int64)
        wanted.append(Wanted(fraction, first, np.minimum(first + 1, last)))
    found = []
    for ask, ordered in zip(wanted, _order_statistics(states, shifts, samples, wanted), strict=True):
        left, right = ordered.T
        weight, difference = last * ask.fraction - ask.first, right - left
        found.append(np.where(weight >= 0.5, right - difference * (1 - weight), left + difference * weight))
    return found[0], found[1]


class Wanted(NamedTuple):
    """Two neighbouring ranks from 0 in each of D distributions, and the fraction of the values below them."""

    fraction: float
    first: Ints
    second: Ints


def _order_statistics(states: Sequence[Distributions], shifts: Floats, samples: Floats, wanted: Sequence[Wanted]) -> list[Floats]:
    """The shifted logs at some ranks of the union of distributions.

    Args:
        states: One or two.
        shifts: What is subtracted from the logs of each, (states, D).
        samples: Shifted logs of a sample of the union, sorted, (D, samples).
        wanted: The ranks.

    Returns:
        Per pair of ranks, both values, (D, 2).
    """
    edges = _edges(samples, [ask.fraction for ask in wanted])
    thresholds = _with_ends(_thresholds(edges, shifts))
    below = np.sum([state.counts(marks) for state, marks in zip(states, thresholds, strict=True)], axis=0)
    return [_between_edges(states, shifts, edges, thresholds, below, ask) for ask in wanted]


def _between_edges(
    states: Sequence[Distributions], shifts: Floats, edges: Floats, thresholds: Floats32, below: Ints, ask: Wanted
) -> Floats:
    rows = np.arange(len(edges))
    start = (below <= ask.first[:, None]).sum(1) - 1
    stop = (below <= ask.second[:, None]).sum(1)
    # edge i has threshold i + 1: the ends have no edge
    low, high = (edges[rows, np.minimum(np.maximum(end - 1, 0), edges.shape[1] - 1)] for end in (start, stop))
    single = (start > 0) & (stop == start + 1) & (stop <= edges.shape[1]) & (high == np.nextafter(low, np.inf))
    stop = np.where(single, start, stop)
    inside, first = _sorted_logs(states, shifts, [(marks[rows, start], marks[rows, stop]) for marks in thresholds])
    position = np.stack([ask.first, ask.second], axis=1) - below[rows, start][:, None]
    position[single] = 0
    values: Floats = inside[np.minimum(first[:, None] + position, inside.size - 1)]
    values[single] = low[single, None]
    return values


def _edges(samples: Floats, fractions: Sequence[float]) -> Floats:
    """Strictly ascending edges around the fractions; an edge that repeats gives way by one step: equal values get their own bracket."""
    num_samples = samples.shape[1]
    around = {int((fraction + offset / 512) * num_samples) for fraction in fractions for offset in _NEIGHBOURS}
    edges: Floats = samples[:, sorted({min(max(position, 0), num_samples - 1) for position in around})]
    edges = np.concatenate([edges, edges[:, -1:]], axis=1)
    for column in range(1, edges.shape[1]):
        edges[:, column] = np.maximum(edges[:, column], np.nextafter(edges[:, column - 1], np.inf))
    return edges


def _with_ends(thresholds: Floats32) -> Floats32:
    ends = np.zeros((*thresholds.shape[:-1], 1), np.float32)
    return np.concatenate([ends, thresholds, ends + np.float32(np.inf)], axis=-1)


def _sorted_logs(states: Sequence[Distributions], shifts: Floats, limits: list[tuple[Floats32, Floats32]]) -> tuple[Floats, Ints]:
    """The shifted logs between two thresholds of each state, together, pair after pair, each sorted; and where each pair's start."""
    parts = [state.between(low, high) for state, (low, high) in zip(states, limits, strict=True)]
    lengths: Ints = np.sum([found for _, found in parts], axis=0)
    first = lengths.cumsum() - lengths
    joined = np.full(int(lengths.sum()) + 1, np.inf)
    free = first.copy()
    for (values, found), shift in zip(parts, shifts, strict=True):
        places = np.arange(values.size) + np.repeat(free - found.cumsum() + found, found)
        joined[places] = log_of(values) - np.repeat(shift, found)
        free += found
    for start, stop in zip(first.tolist(), free.tolist(), strict=True):
        joined[start:stop].sort()
    return joined, first
