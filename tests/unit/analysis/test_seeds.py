from collections.abc import Mapping, Sequence

import polars as pl
import pytest

from fat_ray.analysis.seeds import STATISTICS, seed_statistics

BASE = [0.60, 0.62, 0.59, 0.61, 0.63, 0.60, 0.61, 0.62, 0.58]


def statistics(
    settings: Mapping[str, Sequence[float]], *, direction: str = "maximize", margin: float | None = None
) -> dict[str, dict[str, object]]:
    """What is said of settings, each with its gains over the baseline by seed."""
    runs = [("base", seed, value, 0.0, True) for seed, value in enumerate(BASE)]
    runs += [(name, seed, BASE[seed] + gain, gain, False) for name, gains in settings.items() for seed, gain in enumerate(gains)]
    frame = pl.DataFrame(runs, schema=["setting", "seed", "value", "difference", "is_base"], orient="row")
    frame = frame.with_columns(pl.lit("s").alias("study"), pl.format("{}-{}", "setting", "seed").alias("run"))
    return {row["setting"]: row for row in seed_statistics(frame, direction, margin).iter_rows(named=True)}


GAIN = [0.02, 0.03, 0.01, 0.025, 0.02, 0.03, 0.015, 0.02, 0.025]
MIXED = [0.02, -0.02, 0.01, -0.015, 0.005, -0.01, 0.012, -0.008, 0.003]


def test_every_statistic_is_there_and_its_column_has_its_type() -> None:
    frame = pl.DataFrame(
        {"study": ["s"], "setting": ["a"], "seed": [0], "run": ["a"], "value": [0.5], "difference": [None], "is_base": [True]}
    )
    found = seed_statistics(frame.with_columns(pl.col("difference").cast(pl.Float64)), "maximize", None)
    assert dict(found.schema) == {"study": pl.String, "setting": pl.String, **STATISTICS}


@pytest.mark.parametrize(("direction", "verdict"), [("maximize", "better"), ("minimize", "worse")])
def test_a_difference_of_all_seeds_is_shown(direction: str, verdict: str) -> None:
    row = statistics({"a": GAIN}, direction=direction)["a"]
    assert (row["n"], row["pairs"], row["verdict"]) == (9, 9, verdict)
    assert row["p"] == row["p_holm"] == row["p_attainable"] == pytest.approx(2 / 2**9)
    assert row["difference_mean"] == pytest.approx(sum(GAIN) / 9)
    assert 0.01 < row["difference_low"] < row["difference_mean"] < row["difference_high"] < 0.03
    assert row["value_mean"] == pytest.approx((sum(BASE) + sum(GAIN)) / 9)
    assert row["effect"] > 2


def test_a_difference_that_changes_its_sign_is_not_shown() -> None:
    row = statistics({"a": MIXED})["a"]
    assert row["verdict"] == "not shown"
    assert row["difference_low"] < 0 < row["difference_high"]


def test_the_baseline_is_not_compared_with_itself() -> None:
    row = statistics({"a": GAIN})["base"]
    assert (row["verdict"], row["pairs"], row["p"], row["difference_mean"]) == ("baseline", 0, None, None)
    assert row["value_low"] < row["value_mean"] < row["value_high"]


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_too_few_pairs_conclude_nothing(pairs: int) -> None:
    row = statistics({"a": GAIN[:pairs]})["a"]
    assert row["verdict"] == "too few seeds"
    assert row["p"] == (None if pairs == 1 else pytest.approx(2 / 2**pairs))


def test_six_pairs_are_enough_for_one_setting_and_too_few_for_two() -> None:
    assert statistics({"a": GAIN[:6]})["a"]["verdict"] == "better"  # 2/2^6 = 0.031
    two = statistics({"a": GAIN[:6], "b": GAIN[:6]})
    assert [two[name]["p_attainable"] for name in "ab"] == pytest.approx([0.0625, 0.0625])
    assert [two[name]["verdict"] for name in "ab"] == ["too few seeds", "too few seeds"]


def test_holm_counts_all_settings_that_are_compared() -> None:
    found = statistics(dict.fromkeys("abcd", GAIN))
    assert [found[name]["p_holm"] for name in "abcd"] == pytest.approx([4 * 2 / 2**9] * 4)


def test_a_setting_without_a_common_seed() -> None:
    frame = pl.DataFrame(
        {"study": ["s"] * 2, "setting": ["a"] * 2, "run": ["x", "y"], "seed": [0, 1], "value": [0.5, 0.6], "difference": [None, None]},
        schema_overrides={"difference": pl.Float64},
    )
    row = seed_statistics(frame.with_columns(is_base=False), "maximize", 0.1).row(0, named=True)
    assert (row["verdict"], row["equivalence"], row["pairs"], row["p"]) == ("no pairs", "no pairs", 0, None)


@pytest.mark.parametrize(
    ("gains", "margin", "direction", "expected"),
    [
        (MIXED, 0.05, "maximize", "within"),
        (MIXED, 0.05, "minimize", "within"),
        (MIXED, 0.006, "maximize", "not shown"),  # the interval reaches beyond
        (GAIN, 0.01, "maximize", "not worse"),  # better by more than the margin
        (GAIN, 0.01, "minimize", "not shown"),  # worse by more than the margin
        (MIXED[:4], 0.05, "maximize", "too few seeds"),  # 1/2^4 = 0.0625
    ],
)
def test_equivalence(gains: list[float], margin: float, direction: str, expected: str) -> None:
    assert statistics({"a": gains}, direction=direction, margin=margin)["a"]["equivalence"] == expected


def test_without_a_margin_nothing_is_said_of_equivalence() -> None:
    row = statistics({"a": GAIN})["a"]
    assert (row["equivalence"], row["p_equivalence"], row["p_not_worse"]) == (None, None, None)


def test_the_order_of_the_rows_does_not_matter() -> None:
    runs = pl.DataFrame(
        {
            "study": ["s"] * 9,
            "setting": ["a"] * 9,
            "seed": range(9),
            "run": [f"a{seed}" for seed in range(9)],
            "value": BASE,
            "difference": MIXED,
            "is_base": [False] * 9,
        }
    )
    assert seed_statistics(runs, "maximize", None).equals(seed_statistics(runs.sample(fraction=1, shuffle=True, seed=1), "maximize", None))


def test_intervals_only_where_they_are_wanted() -> None:
    frame = pl.DataFrame(
        {"study": ["s"] * 4, "setting": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "run": list("wxyz"), "value": [1.0, 2.0, 3.0, 4.0]}
    )
    frame = frame.with_columns(pl.lit(None, pl.Float64).alias("difference"), is_base=False)
    found = seed_statistics(frame, "maximize", None, pl.DataFrame({"study": ["s"], "setting": ["b"]}))
    assert found["value_low"].to_list() == [None, 3.0]
    assert found["value_mean"].to_list() == [1.5, 3.5]
