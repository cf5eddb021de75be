"""The distance between two Fisher distributions of a group, exactly as defined, without a logarithm per element.

Definition: `log10(|F| + 1e-12)` of both states, each optionally centred on its median; equal bins between the joint 1st and 99th percentile
(linear interpolation); values outside are dropped, the last bin is closed on the right; every count gets 1e-12, and every probability is at
least 1e-12; `d = sqrt(JS(p, q))` with natural logarithms, so 0 <= d <= sqrt(ln 2). Raw mode: |F| itself, bins between the joint minimum and
maximum. Source: arXiv 2606.10196, Alg. 1.

Method: log10 is monotone, so both states are sorted as they are; only the tails that hold the percentiles are transformed; bin edges are
mapped back to the smallest float32 that reaches them, and bins are counted by binary search.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-12
PERCENTILES = (0.01, 0.99)
MAX_DISTANCE = float(np.sqrt(np.log(2.0)))

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]
Centre = Literal["median", "none"]
Mode = Literal["log", "raw"]

_LARGEST = int(np.float32(np.inf).view(np.int32))


def js_distance(reference: Floats32, current: Floats32, *, mode: Mode = "log", bins: int = 64, centre: Centre = "none") -> float:
    """Jensen-Shannon distance between the distributions of two states of one group.

    Args:
        reference: Diagonal Fisher values of one state, any shape, float32, finite.
        current: The other state; sizes may differ.
        mode: ``log`` or ``raw``, see above.
        bins: Number of histogram bins.
        centre: ``median`` makes the log distance independent of the scale of each state.

    Returns:
        The distance, 0 to sqrt(ln 2) = 0.8326.

    Raises:
        ValueError: A state is empty or not finite.
    """
    ordered = [np.sort(np.abs(np.asarray(state, np.float32)), axis=None) for state in (reference, current)]
    for name, state in zip(("reference", "current"), ordered, strict=True):
        if not state.size or not np.isfinite(state[-1]):
            raise ValueError(f"{name} must hold at least one finite value, got {state.size} values, the largest {state[-1:]}")
    return float(np.sqrt(js_divergence_sorted(ordered[0], ordered[1], mode=mode, bins=bins, centre=centre)))


def js_divergence_sorted(reference: Floats32, current: Floats32, *, mode: Mode = "log", bins: int = 64, centre: Centre = "none") -> float:
    """Square of `js_distance` for states that are non-negative, finite and sorted already."""
    if mode == "raw":
        p, q = _raw_histograms(reference, current, bins)
    else:
        p, q = _log_histograms(reference, current, bins, centre)
    return float(divergence_of_counts(p, q))


def divergence_of_counts(reference: NDArray[Any], current: NDArray[Any]) -> Floats:
    """Jensen-Shannon divergence of histograms with equal bins, in natural units; bins are the last dimension, which goes."""
    p, q = _probabilities(reference), _probabilities(current)
    m = 0.5 * (p + q)
    divergence = 0.5 * (np.sum(p * np.log(p / m), axis=-1) + np.sum(q * np.log(q / m), axis=-1))
    positive: Floats = np.maximum(0.0, divergence)
    return positive


def automatic_bins(size: int) -> int:
    """Rice's rule 2·n^(1/3), between 8 and 64."""
    return int(np.clip(round(2 * size ** (1 / 3)), 8, 64))


def _probabilities(counts: NDArray[Any]) -> Floats:
    """Counts as probabilities of at least 1e-12: what the recorded distances of the released code need to be met exactly."""
    masses: Floats = np.add(counts, EPSILON, order="C")  # sums of equal counts are equal to the bit in one order only
    masses = np.maximum(masses / masses.sum(axis=-1, keepdims=True), EPSILON)
    masses /= masses.sum(axis=-1, keepdims=True)
    return masses


def _raw_histograms(reference: Floats32, current: Floats32, bins: int) -> tuple[NDArray[Any], NDArray[Any]]:
    low, high = float(min(reference[0], current[0])), float(max(reference[-1], current[-1]))
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    edges[-1] = np.nextafter(edges[-1], np.inf)  # closed on the right
    thresholds = widened(edges)
    return _counts(reference, thresholds), _counts(current, thresholds)


def widened(edges: Floats) -> Floats32:
    """The smallest float32 that is at least each edge."""
    thresholds = edges.astype(np.float32)
    below = thresholds < edges
    thresholds[below] = np.nextafter(thresholds[below], np.float32(np.inf))
    return thresholds


def _log_histograms(reference: Floats32, current: Floats32, bins: int, centre: Centre) -> tuple[NDArray[Any], NDArray[Any]]:
    states = [reference, current]
    shifts = [_medianlog_of(state) if centre == "median" else 0.0 for state in states]
    low, high = _joint_percentiles(states, shifts)
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    edges[-1] = np.nextafter(edges[-1], np.inf)
    p, q = (_counts(state, smallest_reaching(edges, shift)) for state, shift in zip(states, shifts, strict=True))
    return p, q


def _counts(ordered: Floats32, thresholds: Floats32) -> NDArray[np.int64]:
    return np.diff(np.searchsorted(ordered, thresholds))


def log_of(values: Floats32) -> Floats:
    """`log10(v + 1e-12)` in float64."""
    return np.log10(values.astype(np.float64) + EPSILON)


def _medianlog_of(state: Floats32) -> float:
    middle = state[[(state.size - 1) // 2, state.size // 2]]
    return float(log_of(middle).mean())


def _joint_percentiles(states: list[Floats32], shifts: list[float]) -> tuple[float, float]:
    """Percentiles of the union of the shifted logs; only the tails that can hold them are transformed."""
    total = sum(state.size for state in states)
    ranks = [(total - 1) * fraction for fraction in PERCENTILES]
    below = int(ranks[0]) + 2
    above = total - int(ranks[1])
    head = np.sort(np.concatenate([log_of(state[:below]) - shift for state, shift in zip(states, shifts, strict=True)]))
    tail = np.sort(np.concatenate([log_of(state[-above:]) - shift for state, shift in zip(states, shifts, strict=True)]))
    return _interpolate(head, ranks[0]), _interpolate(tail, ranks[1] - (total - tail.size))


def _interpolate(ordered: Floats, rank: float) -> float:
    """Linear interpolation between order statistics, with the rounding of numpy.percentile."""
    index = int(rank)
    fraction = rank - index
    left, right = ordered[index], ordered[min(index + 1, ordered.size - 1)]
    difference = right - left
    return float(right - difference * (1 - fraction) if fraction >= 0.5 else left + difference * fraction)


def smallest_reaching(edges: Floats, shift: Floats | float) -> Floats32:
    """The smallest float32 v >= 0 with `log10(v + 1e-12) - shift >= edge`, per edge; infinity if there is none.

    The inverse function gives a guess; its neighbours decide, and where they do not, as for numbers so small that the logarithm hardly sees
    them, the sum is found first and then what has to be added to reach it.

    Args:
        edges: Any shape.
        shift: Broadcasts with `edges`.
    """
    shift = np.broadcast_to(shift, edges.shape)
    with np.errstate(over="ignore"):
        guess = np.maximum(10.0 ** (edges + shift) - EPSILON, 0.0).astype(np.float32)
    bits = guess.view(np.int32)
    before, here, after = (log_of(_float32(bits + step)) - shift >= edges for step in (-1, 0, 1))
    found = np.where(here, bits, bits + 1)
    unsure = before & (bits > 0) | ~after
    if unsure.any():
        found[unsure] = _first_bits(_smallest_argument(edges[unsure], shift[unsure]))
    return _float32(found)


def _float32(bits: NDArray[np.int32]) -> Floats32:
    """Non-negative numbers from their bits, up to infinity."""
    values: Floats32 = np.minimum(np.maximum(bits, 0), _LARGEST).astype(np.int32).view(np.float32)
    return values


def _smallest_argument(edges: Floats, shift: Floats) -> Floats:
    """The smallest float64 w with `log10(w) - shift >= edge`; power and logarithm are off by a few hundred steps at most."""
    guess = (10.0 ** (edges + shift)).view(np.int64)
    low, high = guess - (1 << 12), guess + (1 << 12)
    while (high - low > 1).any():
        middle = (low + high) // 2
        reached = np.log10(middle.view(np.float64)) - shift >= edges
        high, low = np.where(reached, middle, high), np.where(reached, low, middle)
    return high.view(np.float64)


def _first_bits(sums: Floats) -> NDArray[np.int32]:
    """Bits of the smallest float32 v >= 0 for which `v + 1e-12` is rounded to at least each sum."""
    half_step = 0.5 * (sums - np.nextafter(sums, 0.0))
    with np.errstate(over="ignore"):
        bits = np.maximum(sums - EPSILON - half_step, 0.0).astype(np.float32).view(np.int32)
    candidates = np.stack([bits - 1, bits, bits + 1])
    reached = (candidates >= 0) & (_float32(candidates).astype(np.float64) + EPSILON >= sums)
    first: NDArray[np.int32] = np.take_along_axis(candidates, reached.argmax(axis=0)[None], axis=0)[0]
    return first
