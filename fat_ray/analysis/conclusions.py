"""What may be concluded from the seeds of a comparison, in sentences."""

from typing import Any

import polars as pl

from fat_ray.analysis.compare import Comparison
from fat_ray.analysis.seeds import BASELINE, BETTER, NO_PAIRS, NOT_SHOWN, NOT_WORSE, TOO_FEW, WITHIN, WORSE
from fat_ray.analysis.statistics import ALPHA, RESAMPLES, smallest_p
from fat_ray.analysis.table import difference_text, measure_name
from fat_ray.view import text

Row = dict[str, Any]
_SHOWN = 5  # settings that a sentence names
_VERDICTS = {BETTER: "it is better", WORSE: "it is worse", NOT_SHOWN: "no difference is shown", TOO_FEW: "too few seeds to conclude"}
_SMALL = 20  # seeds below which intervals are too narrow, as bench.intervals measures it


def conclusions(comparison: Comparison) -> list[str]:
    """Sentences on differences, on equivalence when a margin was given, and on what the number of seeds allows."""
    if not comparison.several_seeds:
        return _single_seed(comparison)
    return [*_differences(comparison), *_equivalence(comparison), *limits(comparison)]


def limits(comparison: Comparison) -> list[str]:
    """What so many seeds cannot show, and how intervals were made."""
    return [*_too_few(comparison), *_intervals(comparison)]


def seed_by_seed(comparison: Comparison, row: Row) -> str:
    """How a setting differs from the baseline over seeds; nothing with fewer than two pairs.

    Args:
        comparison: The comparison.
        row: The setting's row.
    """
    if row["p"] is None:
        return ""
    mean, low, high = (difference_text(comparison, row[f"difference_{part}"]) for part in ("mean", "low", "high"))
    corrected = f"{_p(row['p'])}, {_p(row['p_holm'])} after Holm's correction" if row["p_holm"] != row["p"] else _p(row["p"])
    return (
        f"Seed by seed it differs from {text.setting_name(comparison.options.baseline)} by {mean}"
        f" in {measure_name(comparison)} (95 % interval {low} to {high}, n = {row['pairs']}; exact paired test p {corrected}):"
        f" {_VERDICTS[row['verdict']]}."
    )


def _single_seed(comparison: Comparison) -> list[str]:
    if comparison.settings["n"].fill_null(0).sum() == 0:
        return []
    return ["One seed per setting: no interval and no test; a difference between two runs includes the noise of single trainings."]


def _compared(comparison: Comparison) -> pl.DataFrame:
    return comparison.settings.filter(~pl.col("verdict").is_in([BASELINE, NO_PAIRS]))


def _differences(comparison: Comparison) -> list[str]:
    compared, base, said = _compared(comparison), text.setting_name(comparison.options.baseline), list[str]()
    if compared.is_empty():
        return [f"No completed setting shares a seed with {comparison.options.baseline}: nothing was tested."]
    for verdict in (BETTER, WORSE):
        found = compared.filter(verdict=verdict)
        if found.height:
            said.append(f"{_names(found)}: {verdict} than {base} in {measure_name(comparison)} (p ≤ {ALPHA} after Holm's correction).")
    if not said and compared.filter(verdict=TOO_FEW).height < compared.height:
        tests = text.count(compared["p"].count(), "setting")
        said.append(
            f"No difference to {base} in {measure_name(comparison)} was shown at p ≤ {ALPHA}, after Holm's correction over {tests}."
        )
    return said


def _equivalence(comparison: Comparison) -> list[str]:
    """Who is within the margin, and at what cost: within 0.005 test F1 of full fine-tuning at 40 % less compute."""
    margin, base = comparison.options.margin, text.setting_name(comparison.options.baseline)
    if margin is None:
        return []
    found = comparison.settings.filter(pl.col("equivalence").is_in([WITHIN, NOT_WORSE]))
    if found.is_empty():
        return [f"No setting was shown to be within {margin:g} {measure_name(comparison)} of {base}."]
    said = [_within(comparison, row, base) for row in found.head(_SHOWN).iter_rows(named=True)]
    more = found.height - len(said)
    return [*said, f"The same holds for {text.count(more, 'more setting')}."] if more > 0 else said


def _within(comparison: Comparison, row: Row, base: str) -> str:
    low, high = (difference_text(comparison, row[f"difference_{end}"]) for end in ("low", "high"))
    margin, name, within = f"{comparison.options.margin:g}", measure_name(comparison), row["equivalence"] == WITHIN
    relation = f"within {margin} {name} of {base}" if within else f"at most {margin} {name} worse than {base}"
    return (
        f"{row['setting']} is {relation}{_at_cost(row['flops_ratio_mean'])}"
        f" (difference {difference_text(comparison, row['difference_mean'])}, 95 % interval {low} to {high}, n = {row['pairs']},"
        f" p {_p(row['p_equivalence' if within else 'p_not_worse'])})."
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _at_cost(ratio: float | None) -> str:
    if ratio is None:
        return ""
    change = round(100 * abs(1 - ratio))
    return (
        f" at {change}\N{NO-BREAK SPACE}% {'less' if ratio <= 1 else 'more'} compute (FLOPs)" if change else " at the same compute (FLOPs)"
    )


def _too_few(comparison: Comparison) -> list[str]:
    """That, and why, so many seeds can show nothing; and how many could."""
    few = _compared(comparison).filter(pl.col("verdict") == TOO_FEW)
    if few.is_empty():
        return []
    pairs, tests = int(few["pairs"].max() or 0), max(int(_compared(comparison)["p"].count()), 1)  # type: ignore[arg-type]
    enough = next(count for count in range(2, 64) if tests * smallest_p(count) <= ALPHA or smallest_p(count) == smallest_p(63))
    least = smallest_p(pairs)
    corrected = f", {min(1.0, tests * least):.2g} after Holm's correction over {tests} settings" if tests > 1 else ""
    limit = f"With n = {text.count(pairs, 'pair')} an exact test cannot give p below 2/2^{pairs} = {least:.2g}{corrected}"
    return [f"{_names(few)}: too few seeds to conclude. {limit}; {enough} seeds could show a difference at p ≤ {ALPHA}."]


def _intervals(comparison: Comparison) -> list[str]:
    counts = comparison.settings.filter(pl.col("n") > 1)["n"]
    if counts.is_empty():
        return []
    most = int(counts.max())  # type: ignore[arg-type]
    caution = f" With fewer than {_SMALL} seeds they are too narrow: with 5, some 85 % of them hold the truth." if most < _SMALL else ""
    return [f"Intervals: 95 % BCa bootstrap over seeds, {RESAMPLES} resamples.{caution}"]


def _names(settings: pl.DataFrame) -> str:
    names = settings["setting"].head(_SHOWN).to_list()
    more = settings.height - len(names)
    return text.listing([*names, f"{more} more"] if more else names)
