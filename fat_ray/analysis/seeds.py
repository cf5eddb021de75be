"""What the seeds of a setting say: its mean with an interval, and how sure it is that it differs from the baseline, or that it does not."""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fat_ray.analysis.statistics import ALPHA, Floats, effect_sizes, holm, intervals, sign_flip, smallest_p

BASELINE, NO_PAIRS, TOO_FEW, NOT_SHOWN = "baseline", "no pairs", "too few seeds", "not shown"
BETTER, WORSE = "better", "worse"
"""Verdicts on a difference, beside the first four."""
WITHIN, NOT_WORSE = "within", "not worse"
"""Verdicts on equivalence, beside the first four."""

STATISTICS: dict[str, pl.DataType | type[pl.DataType]] = {
    "n": pl.Int64,
    "value_mean": pl.Float64,
    "value_low": pl.Float64,
    "value_high": pl.Float64,
    "pairs": pl.Int64,
    "difference_mean": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "effect": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "p_attainable": pl.Float64,
    "verdict": pl.String,
    "p_not_worse": pl.Float64,
    "p_equivalence": pl.Float64,
    "equivalence": pl.String,
}
"""Columns that `seed_statistics` adds to settings; docs/compare.md says what each one means."""

_KEY = ["study", "setting"]


def seed_statistics(runs: pl.DataFrame, direction: str, margin: float | None, shown: pl.DataFrame | None = None) -> pl.DataFrame:
    """One row per setting with the columns `STATISTICS`.

    Args:
        runs: Study, setting, seed, run, `is_base`, and of each run that completed `value` and `difference`, null for any other.
        direction: Which way the value is better.
        margin: Differences up to this do not matter; None: nothing is said of equivalence.
        shown: Study and setting of those whose intervals are wanted, for they take longest; None, or with a margin: all.
    """
    found = (
        runs.sort(*_KEY, "seed", "run")
        .group_by(_KEY, maintain_order=True)
        .agg(  # resampling depends on the order of the seeds
            pl.col("value").drop_nulls(), pl.col("difference").drop_nulls(), pl.col("is_base").any()
        )
    )
    is_base = found["is_base"].to_numpy()
    differences = [[] if base else list(row) for base, row in zip(is_base, found["difference"].to_list(), strict=True)]
    wanted = np.ones(found.height, dtype=bool)
    if shown is not None and margin is None:
        wanted = found.join(shown.with_columns(wanted=True), on=_KEY, how="left", maintain_order="left")["wanted"].is_not_null().to_numpy()
    columns = {**_values(found["value"].to_list(), wanted), **_differences(differences, is_base, direction, wanted)}
    columns.update(_equivalence(differences, columns, is_base, direction, margin))
    made = pl.DataFrame({name: pl.Series(columns[name], dtype=kind, strict=False) for name, kind in STATISTICS.items()})
    return pl.concat([found.select(_KEY), made.with_columns(pl.col(pl.Float64).fill_nan(None))], how="horizontal")


Column = Sequence[object] | Floats
Bools = NDArray[np.bool_]


def _values(values: Sequence[Sequence[float]], wanted: Bools) -> dict[str, Column]:
    ends = _intervals(values, wanted)
    return {"n": [len(row) for row in values], "value_mean": _means(values), "value_low": ends[:, 0], "value_high": ends[:, 1]}


def _intervals(values: Sequence[Sequence[float]], wanted: Bools) -> Floats:
    return _by_length([row if needed else [] for row, needed in zip(values, wanted, strict=True)], intervals, 2)


def _differences(differences: Sequence[Sequence[float]], is_base: Bools, direction: str, wanted: Bools) -> dict[str, Column]:
    pairs = [len(row) for row in differences]
    ends, means = _intervals(differences, wanted), _means(differences)
    p = _by_length(differences, sign_flip)
    corrected, attainable = holm(p), _attainable(pairs, p, sides=2)
    sign = 1.0 if direction == "maximize" else -1.0
    verdicts = [
        _verdict(count, base=bool(base), attainable=least, p=found, gain=sign * mean)
        for count, base, least, found, mean in zip(pairs, is_base, attainable, corrected, means, strict=True)
    ]
    return {
        "pairs": pairs,
        "difference_mean": means,
        "difference_low": ends[:, 0],
        "difference_high": ends[:, 1],
        "effect": _by_length(differences, effect_sizes),
        "p": p,
        "p_holm": corrected,
        "p_attainable": attainable,
        "verdict": verdicts,
    }


def _verdict(pairs: int, *, base: bool, attainable: float, p: float, gain: float) -> str:
    if base or not pairs:
        return BASELINE if base else NO_PAIRS
    if np.isnan(p) or attainable > ALPHA:
        return TOO_FEW
    if p > ALPHA:
        return NOT_SHOWN
    return BETTER if gain > 0 else WORSE


def _attainable(pairs: Sequence[int], p: Floats, *, sides: int) -> Floats:
    """The smallest corrected p that each test could give: not less than its own smallest p, nor than m times the smallest of all m tests.

    Holm multiplies the smallest of m p by m, and no corrected p is less than that.
    """
    least = np.array([smallest_p(count, sides=sides) for count in pairs])
    tested = ~np.isnan(p)
    if not tested.any():
        return np.full(len(p), np.nan)
    return np.where(tested, np.minimum(np.maximum(least, tested.sum() * least[tested].min()), 1.0), np.nan)


def _equivalence(
    differences: Sequence[Sequence[float]], columns: dict[str, Column], is_base: Bools, direction: str, margin: float | None
) -> dict[str, Column]:
    """Two one-sided tests (Schuirmann 1987) by sign flips, and the interval, must both lie within the margin."""
    nothing = np.full(len(differences), np.nan)
    if margin is None:
        return {"p_not_worse": nothing, "p_equivalence": nothing, "equivalence": [None] * len(differences)}
    sign = 1.0 if direction == "maximize" else -1.0
    gains = [[sign * value for value in row] for row in differences]
    above = _by_length(gains, lambda rows: sign_flip(rows + margin, "greater"))
    below = _by_length(gains, lambda rows: sign_flip(rows - margin, "less"))
    not_worse, within = holm(above), holm(np.maximum(above, below))
    ends = sign * np.stack([np.asarray(columns["difference_low"]), np.asarray(columns["difference_high"])])
    least, most = ends.min(axis=0), ends.max(axis=0)
    attainable = _attainable([len(row) for row in gains], above, sides=1)
    verdicts = []
    for at, row in enumerate(gains):
        if is_base[at] or not row:
            verdicts.append(BASELINE if is_base[at] else NO_PAIRS)
        elif np.isnan(within[at]) or attainable[at] > ALPHA:
            verdicts.append(TOO_FEW)
        elif least[at] > -margin and not_worse[at] <= ALPHA:
            verdicts.append(WITHIN if most[at] < margin and within[at] <= ALPHA else NOT_WORSE)
        else:
            verdicts.append(NOT_SHOWN)
    return {"p_not_worse": not_worse, "p_equivalence": within, "equivalence": verdicts}


def _means(rows: Sequence[Sequence[float]]) -> Floats:
    return np.array([np.mean(row) if len(row) else np.nan for row in rows])


def _by_length(rows: Sequence[Sequence[float]], function: Callable[[Floats], Floats], width: int = 1) -> Floats:
    """A function of arrays (settings, seeds), applied to all settings with equally many seeds at once."""
    found = np.full((len(rows), width), np.nan)
    for length in sorted({len(row) for row in rows} - {0}):
        places = [at for at, row in enumerate(rows) if len(row) == length]
        found[places] = function(np.array([rows[at] for at in places], dtype=np.float64)).reshape(len(places), width)
    return found if width > 1 else found[:, 0]
