"""Statistics over seeds: intervals, paired tests, and what belongs to them.

All of it is scipy's but for three short formulas: Holm's correction, Hedges' correction of an effect size, and the smallest p that an
exact test can reach. Arrays have the shape (settings, seeds); every row is treated by itself, and always in the same way, whatever stands
beside it.
"""

import warnings
from collections.abc import Iterator
from importlib import import_module
from threading import Thread
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
"""Of the intervals."""
ALPHA = 0.05
"""What p is compared with."""
RESAMPLES = 9999
"""Bootstrap samples behind an interval."""
EXACT_SEEDS = 14
"""Up to this many pairs all 2^n sign flips are counted; beyond, `FLIPS` random ones."""
FLIPS = 2**EXACT_SEEDS - 1

_SEED = 0
_AT_ONCE = 2**22  # numbers drawn at a time: 32 MiB


def prepare() -> None:
    """Begins to import scipy.stats, which takes half a second: meanwhile records can be read, for which Python is hardly needed."""
    Thread(target=import_module, args=("scipy.stats",)).start()


def intervals(values: Floats) -> Floats:
    """BCa bootstrap intervals of the mean of each row (Efron 1987), by `scipy.stats.bootstrap`.

    Args:
        values: Shape (settings, seeds).

    Returns:
        Lower and upper ends, shape (settings, 2). NaN for a single seed; the value itself where all seeds gave the same.
    """
    from scipy.stats import bootstrap

    found = np.full((len(values), 2), np.nan)
    if values.shape[1] < 2:
        return found
    spread = np.ptp(values, axis=1, keepdims=True)
    found[spread[:, 0] == 0] = values[spread[:, 0] == 0][:, :1]
    for rows in _portions(np.flatnonzero(spread[:, 0]), RESAMPLES * values.shape[1]):
        centre = values[rows].mean(axis=1, keepdims=True)
        made = bootstrap(
            ((values[rows] - centre) / spread[rows],),
            _mean,
            axis=-1,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(_SEED),
        )
        found[rows] = np.stack(made.confidence_interval, axis=-1) * spread[rows] + centre
    return found


def _mean(values: Floats, axis: int) -> Floats:
    """The mean of values around 0, without its last digits.

    BCa counts the resamples whose mean equals that of the seeds. Few seeds have many of these, and rounding would tell some of them apart.
    """
    rounded: Floats = np.round(values.mean(axis=axis), 12)
    return rounded


def sign_flip(differences: Floats, alternative: Literal["two-sided", "greater", "less"] = "two-sided") -> Floats:
    """P of the paired permutation test that each row's differences have mean 0, by `scipy.stats.permutation_test`.

    Under the null hypothesis the two settings of a pair may be exchanged, which flips the sign of their difference (Fisher 1935). All 2^n
    sign flips are counted up to `EXACT_SEEDS` pairs; beyond, `FLIPS` random ones.

    Args:
        differences: Shape (settings, pairs).
        alternative: What the mean is against 0.

    Returns:
        p, shape (settings,); NaN for a single pair, with which nothing can be tested.
    """
    from scipy.stats import permutation_test

    pairs = differences.shape[1]
    found = np.full(len(differences), np.nan)
    if pairs < 2:
        return found
    for rows in _portions(np.arange(len(differences)), pairs * min(2**pairs, FLIPS)):
        made = permutation_test(
            (differences[rows],),
            np.mean,
            permutation_type="samples",
            vectorized=True,
            axis=-1,
            n_resamples=2**EXACT_SEEDS if pairs <= EXACT_SEEDS else FLIPS,
            alternative=alternative,
            rng=np.random.default_rng(_SEED),
        )
        found[rows] = made.pvalue
    return found


def smallest_p(pairs: int, *, sides: int = 2) -> float:
    """The smallest p that `sign_flip` can give: the largest mean is one of 2^n equally likely ones."""
    return float(sides / 2**pairs if pairs <= EXACT_SEEDS else sides / (FLIPS + 1))


def holm(p: Floats) -> Floats:
    """P corrected for looking at all of them (Holm 1979): the k-th smallest of m times m - k + 1, at least as much as the one before.

    Args:
        p: Shape (tests,); NaN where no test was made, which counts for nothing and stays.
    """
    adjusted = np.array(p, dtype=np.float64)
    made = np.flatnonzero(~np.isnan(adjusted))
    order = made[np.argsort(adjusted[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(adjusted[order] * factors), 1.0)
    return adjusted


def effect_sizes(differences: Floats) -> Floats:
    """Hedges' g_z of each row: the mean difference over the differences' standard deviation, with the correction for few seeds.

    d_z = mean / sd (Cohen 1988), g_z = d_z · J(n - 1) with J(ν) = Γ(ν/2) / (√(ν/2) · Γ((ν - 1)/2)) (Hedges 1981).

    Args:
        differences: Shape (settings, pairs).

    Returns:
        Shape (settings,); NaN below three pairs, of which J knows nothing, and where all differences are equal.
    """
    from scipy.special import gammaln

    pairs = differences.shape[1]
    if pairs < 3:
        return np.full(len(differences), np.nan)
    freedom = (pairs - 1) / 2
    correction = np.exp(gammaln(freedom) - gammaln(freedom - 0.5)) / np.sqrt(freedom)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = differences.mean(axis=1) / differences.std(axis=1, ddof=1) * correction
    return np.where(np.ptp(differences, axis=1) > 0, found, np.nan)


def _portions(rows: NDArray[np.intp], numbers_each: int) -> Iterator[NDArray[np.intp]]:
    """Rows so many at a time that what is drawn for them stays small."""
    step = max(1, _AT_ONCE // numbers_each)
    for first in range(0, len(rows), step):
        yield rows[first : first + step]
