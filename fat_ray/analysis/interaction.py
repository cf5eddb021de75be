"""Whether two settings act together: what their product explains of an objective beyond what each explains by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from fat_ray.analysis.statistics import Floats, holm

SPARE = 10
"""Trials that must be left over after all terms of the model are fitted."""


@dataclass(frozen=True)
class Interaction:
    """Two settings and an objective.

    Attributes:
        settings: Their dotted fields.
        share: Share of the objective's variance that the products explain beyond the settings alone.
        p: Of the F test that this share is 0.
        p_holm: The same, corrected for all pairs that were looked at.
        trials: Trials in which both were suggested.
    """

    settings: tuple[str, str]
    share: float
    p: float
    p_holm: float
    trials: int


def interactions(trials: Sequence[tuple[Mapping[str, Any], float]]) -> list[Interaction]:
    """All pairs of settings that can be judged, the strongest interaction first.

    An objective y is fitted by least squares as a + f(u) + g(v), and as a + f(u) + g(v) + u·v. Of a number, u is its rank among the
    trials, from -1 to 1, and f has u and u²; of a category, u is one indicator per value but the first. The share is the decrease of the
    residual sum of squares over the total one; p is that of the F test of nested linear models, by `scipy.stats.f`.

    Args:
        trials: Of each completed trial, its parameters and the objective's value.
    """
    names = sorted({name for params, _ in trials for name in params})
    found = [(pair, judged) for pair in combinations(names, 2) if (judged := _judge(trials, *pair)) is not None]
    corrected = holm(np.array([p for _, (_, p, _) in found]))
    made = [
        Interaction(pair, share, p, float(adjusted), count) for (pair, (share, p, count)), adjusted in zip(found, corrected, strict=True)
    ]
    return sorted(made, key=lambda one: (one.p, -one.share))


def _judge(trials: Sequence[tuple[Mapping[str, Any], float]], first: str, second: str) -> tuple[float, float, int] | None:
    """Share, p and number of trials; None where there are too few trials, or nothing varies."""
    from scipy.stats import f

    both = [(params[first], params[second], value) for params, value in trials if first in params and second in params]
    if len(both) < SPARE:
        return None
    (own_first, first_terms), (own_second, second_terms) = (_terms([row[at] for row in both]) for at in (0, 1))
    values = np.array([value for *_, value in both])
    products = np.einsum("ij,ik->ijk", first_terms, second_terms).reshape(len(both), -1)
    alone = np.column_stack([np.ones(len(both)), own_first, own_second])
    together = np.column_stack([alone, products])
    total = float(((values - values.mean()) ** 2).sum())
    (rest_alone, rank_alone), (rest, rank) = _fit(alone, values), _fit(together, values)
    spare, added = len(both) - rank, rank - rank_alone
    if spare < SPARE or added < 1 or total == 0 or rest == 0:
        return None
    ratio = ((rest_alone - rest) / added) / (rest / spare)
    return max(0.0, (rest_alone - rest) / total), float(f.sf(ratio, added, spare)), len(both)


def _fit(terms: Floats, values: Floats) -> tuple[float, int]:
    """Residual sum of squares, and rank of the terms."""
    weights, _, rank, _ = np.linalg.lstsq(terms, values, rcond=None)
    return float(((values - terms @ weights) ** 2).sum()), int(rank)


def _terms(values: Sequence[Any]) -> tuple[Floats, Floats]:
    """The terms of a setting alone, and those that enter products."""
    from scipy.stats import rankdata

    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        ranks = rankdata(values)
        scaled = (2 * (ranks - 1) / max(len(values) - 1, 1) - 1)[:, None]
        return np.hstack([scaled, scaled**2]), scaled
    words = [repr(value) for value in values]
    indicators = np.array([[float(word == level) for level in sorted(set(words))[1:]] for word in words]).reshape(len(words), -1)
    return indicators, indicators
