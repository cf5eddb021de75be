"""The distance between two Fisher distributions of a group, exactly as defined; `compare` has the same for many groups at once, faster.

Definition: `log10(|F| + 1e-12)` of both states, each optionally centred on its median; equal bins between the joint 1st and 99th percentile
(linear interpolation); values outside are dropped, the last bin is closed on the right; every count gets 1e-12, and every probability is at
least 1e-12; `d = sqrt(JS(p, q))` with natural logarithms, so 0 <= d <= sqrt(ln 2). Raw mode: |F| itself, bins between the joint minimum and
maximum. Source: arXiv 2606.10196, Alg. 1.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-12
PERCENTILES = (0.01, 0.99)
MAX_DISTANCE = float(np.sqrt(np.log(2.0)))

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]
Centre = Literal["median", "none"]
Mode = Literal["log", "raw"]

_LARGEST = np.float32(np.inf).view(np.int32)


def js_distance(reference: NDArray[Any], current: NDArray[Any], *, mode: Mode = "log", bins: int = 64, centre: Centre = "none") -> float:
    """Jensen-Shannon distance between the distributions of two states of one group.

    Equal constants are at distance 0; unequal ones, as all that has no bin in common, at sqrt(ln 2).

    Args:
        reference: Diagonal Fisher values of one state, any shape and real type; absolute values count.
        current: The other state; sizes may differ.
        mode: ``log`` or ``raw``, see above.
        bins: Number of histogram bins.
        centre: ``median`` makes the log distance independent of the scale of each state.

    Returns:
        The distance, 0 to sqrt(ln 2) = 0.8326.

    Raises:
        ValueError: A state is empty, not finite or not of real numbers, or an option is none of those above.
    """
    _check(mode, bins, centre)
    states = [_magnitudes(name, state) for name, state in (("reference", reference), ("current", current))]
    if mode == "log":
        states = [np.log10(state + EPSILON) for state in states]
        if centre == "median":
            states = [state - np.median(state) for state in states]
        low, high = np.percentile(np.concatenate(states), [100 * fraction for fraction in PERCENTILES])
    else:
        low, high = min(state.min() for state in states), max(state.max() for state in states)
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    counts = np.stack([np.histogram(state, edges)[0] for state in states])
    return float(np.sqrt(divergence_of_counts(counts)))


def _check(mode: str, bins: int, centre: str) -> None:
    if mode not in get_args(Mode) or centre not in get_args(Centre):
        raise ValueError(f"mode must be 'log' or 'raw' and centre 'none' or 'median', not {mode=} and {centre=}")
    if mode == "raw" and centre == "median":
        raise ValueError("centre='median' centres logarithms; mode='raw' needs centre='none'")
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"bins must be a whole number from 1, not {bins!r}")


def _magnitudes(name: str, state: NDArray[Any]) -> Floats:
    """Absolute values, flat, in float64."""
    array = np.asarray(state)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, not {array.dtype}")
    values = np.abs(array.astype(np.float64)).ravel()
    if not values.size:
        raise ValueError(f"{name} must hold at least one value, but is empty")
    if num_bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{name} must be finite, but {num_bad} of its {values.size} values are NaN or infinite")
    return values


def divergence_of_counts(counts: NDArray[Any]) -> Floats:
    """Jensen-Shannon divergence of pairs of histograms with equal bins, in natural units.

    Args:
        counts: (2, ..., bins).

    Returns:
        (...).
    """
    masses = _probabilities(counts)
    divergence = 0.5 * np.sum(masses * np.log(masses / (0.5 * (masses[0] + masses[1]))), axis=-1)
    positive: Floats = np.maximum(0.0, divergence[0] + divergence[1])
    return positive


def automatic_bins(size: int) -> int:
    """Rice's rule 2·n^(1/3), between 8 and 64."""
    return int(np.clip(round(2 * size ** (1 / 3)), 8, 64))


def _probabilities(counts: NDArray[Any]) -> Floats:
    """Counts as probabilities of at least 1e-12: what the recorded distances of the released code need to be met exactly."""
    masses: Floats = np.add(counts, EPSILON, order="C")  # sums of equal counts are equal to the bit in one order only
    masses /= masses.sum(axis=-1, keepdims=True)
    np.maximum(masses, EPSILON, out=masses)
    masses /= masses.sum(axis=-1, keepdims=True)
    return masses


def widened(edges: Floats) -> Floats32:
    """The smallest float32 that is at least each edge."""
    thresholds = edges.astype(np.float32)
    below = thresholds < edges
    thresholds[below] = np.nextafter(thresholds[below], np.float32(np.inf))
    return thresholds


def log_of(values: NDArray[np.floating[Any]]) -> Floats:
    """`log10(v + 1e-12)` in float64."""
    logs = values.astype(np.float64)
    logs += EPSILON
    found: Floats = np.log10(logs, out=logs)
    return found


def smallest_reaching(edges: Floats, shift: Floats | float) -> Floats32:
    """The smallest float32 v >= 0 with `log10(v + 1e-12) - shift >= edge`, per edge; infinity if there is none.

    The inverse function gives a guess; its neighbours decide, and where they do not, as for numbers so small that the logarithm hardly sees
    them, the sum is found first and then what has to be added to reach it.

    Args:
        edges: Any shape.
        shift: Broadcasts with `edges`.
    """
    reached = edges + shift
    with np.errstate(over="ignore"):
        guess = np.maximum(10.0**reached - EPSILON, 0.0).astype(np.float32)
    bits = guess.view(np.int32)
    before, here, after = log_of(_float32(bits + _STEPS.reshape(3, *(1,) * bits.ndim))) - shift >= edges
    found = np.where(here, bits, bits + 1)
    unsure = before & (bits > 0) | ~after
    if unsure.any():
        found[unsure] = _first_bits(_smallest_argument(edges[unsure], np.broadcast_to(shift, edges.shape)[unsure]))
    return _float32(found)


_STEPS = np.array([-1, 0, 1], np.int32)


def _float32(bits: NDArray[np.int32]) -> Floats32:
    """Non-negative numbers from their bits, up to infinity."""
    values: Floats32 = np.minimum(np.maximum(bits, 0), _LARGEST).astype(np.int32, copy=False).view(np.float32)
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
