"""Every figure is drawn from the numbers of the comparison, or says why it is not."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fat_ray.analysis import search_space, series
from fat_ray.analysis.compare import Comparison, compare
from fat_ray.analysis.figures import FIGURES, SECTIONS, Figure, Subject, figure, figures
from fat_ray.analysis.insight import Importance, SearchInsight
from fat_ray.events import Freeze, GroupInfo, Status
from tests.support import runs as events
from tests.support.studies import FakeRun, small_groups, start_of, study_spec, write_events, write_study
from tests.unit.analysis.conftest import CHEAP, FULL, GOOD

pytestmark = pytest.mark.timeout(20)  # altair validates every chart against its schema


def _searched(directory: Path, trials: int = 12, seeds: int = 1, steps: int = 6) -> Comparison:
    """A search whose F1 falls with the threshold and rises with the window."""
    found = [
        replace(run, run=f"{run.run[:-3]}-s{seed}", seed=seed, f1=run.f1 + 0.01 * (seed * 3 % 4))
        for run in (replace(FULL, run="none-s0"), *(_trial(number) for number in range(trials)))
        for seed in range(seeds)
    ]
    spec = study_spec(steps=steps, seeds=list(range(seeds)), freeze={"warmup_steps": 2})
    return compare([write_study(directory, found, spec=spec)])


def _trial(number: int) -> FakeRun:
    threshold, window = -1.2 + 0.1 * number, 8 + 4 * (number % 3)
    params = {"freeze.threshold": threshold, "fisher.every": (2, 4)[number % 2], "freeze.every": window}
    return FakeRun(f"t{number:04d}-s0", trial=number, f1=0.5 - 0.1 * threshold + 0.002 * window, params=params)


def _insight(shares: dict[str, float]) -> SearchInsight:
    return SearchInsight("crack-quick", 12, 3, 0.5, [0.6, 100.0], [0.4, 600.0], 0.25, [Importance("val/f1", shares)], {})


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(inner)


def _rows(made: Figure) -> list[dict[str, Any]]:
    return [row for node in _nodes(made.chart) for row in node.get("values", []) if isinstance(row, dict)]


def test_every_figure_has_its_words_and_a_place_in_the_report(study: Path) -> None:
    made = figures(Subject(compare([study]), "t0000-s0"))
    assert [name for *_, names in SECTIONS for name in names] == list(FIGURES) == list(made)
    for one in made.values():
        assert one.title, one.name
        assert one.caption.endswith("."), one.name
        assert one.chart is not None or one.missing.endswith("."), one.name


def test_the_documentation_lists_every_figure() -> None:
    text = (Path(__file__).parents[3] / "docs" / "report.md").read_text()
    table = text.partition("| name |")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([a-z-]+)`", " ".join(first))) == sorted(FIGURES)


def test_axes_have_titles_and_points_have_tooltips(tmp_path: Path) -> None:
    comparison = _searched(tmp_path / "a", trials=4, seeds=2, steps=12)
    made = figures(Subject(comparison, "t0001-s0", _insight({"freeze.threshold": 1.0})))
    assert all(one.chart for one in made.values()), [one.name for one in made.values() if not one.chart]
    for one in made.values():
        nodes = list(_nodes(one.chart))
        axes = [node["axis"] for node in nodes if node.get("type") == "quantitative" and node.get("axis")]
        assert axes or one.name == "parallel", one.name
        assert all(axis["title"] for axis in axes), one.name
        assert any("tooltip" in node for node in nodes), one.name
        assert one.chart is not None
        assert one.chart["description"]


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    single = compare([write_study(tmp_path / "a", [FakeRun("run-s0", role="single", frozen=0)], spec=study_spec(steps=4, search={}))])
    begun = compare([write_study(tmp_path / "b", [replace(GOOD, status=None, steps=3)], spec=study_spec(steps=20))])
    said = {("a", name): made.missing for name, made in figures(Subject(single, "run-s0")).items() if not made.chart} | {
        ("b", name): made.missing for name, made in figures(Subject(begun, None, _insight({}))).items() if not made.chart
    }
    one_seed = "Every setting was trained with one seed, so there is no interval."
    assert said["a", "seeds"] == said["a", "differences"] == one_seed
    assert said["a", "drift"] == "No drift was recorded for this run."
    assert said["a", "importance"] == said["a", "parallel"] == "The study searched nothing."
    assert said["a", "landscape"] == "The study did not search freeze.threshold and freeze.every."
    assert said["b", "tradeoff"] == said["b", "tradeoff-time"] == "No setting has completed yet."
    assert said["b", "schedule"] == said["b", "score"] == "No trial has completed, so there is no run to draw."
    assert said["b", "zero-shot"] == "No completed setting was evaluated on a test split and a zero-shot set."
    assert said["b", "landscape"] == "Fewer than four completed trials lie at different thresholds and windows."
    assert "too few to tell which settings matter" in said["b", "importance"]


def test_intervals_are_those_of_the_comparison(tmp_path: Path) -> None:
    comparison = _searched(tmp_path / "a", trials=2, seeds=4)
    known = {row["setting"]: row for row in comparison.settings.iter_rows(named=True)}
    names = {"full fine-tuning": "none"}
    means, values = series.seed_means(comparison)
    assert {row["setting"] for row in means} == {"full fine-tuning", "trial 0", "trial 1"}
    for row in means:
        expected = known[names.get(row["setting"], row["setting"])]
        assert [row["mean"], row["low"], row["high"], row["n"]] == [expected[f"value_{part}"] for part in ("mean", "low", "high")] + [4]
        assert row["low"] < row["mean"] < row["high"]
    assert sorted(row["value"] for row in values) == sorted(comparison.runs["value"])
    for row in series.seed_differences(comparison):
        expected = known[row["setting"]]
        assert [row["mean"], row["low"], row["verdict"]] == [expected["difference_mean"], expected["difference_low"], expected["verdict"]]


def test_settings_beyond_those_with_room_are_counted_in_the_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = _searched(tmp_path / "a", trials=4, seeds=2)
    monkeypatch.setattr(series, "SHOWN_SETTINGS", 2)
    monkeypatch.setattr(series, "SHOWN_RUNS", 3)
    means, _ = series.seed_means(comparison)
    assert len(means) == 3 if means[-1]["setting"] == "full fine-tuning" else 2
    assert "Drawn are the first 2 of 5 settings" in figure("seeds", Subject(comparison, None)).caption
    assert "the first 3 of 10 runs, and the baselines" in figure("cost-time", Subject(comparison, None)).caption
    assert {row["run"] for row in series.costs(comparison)} >= {"none-s0", "none-s1"}


def test_a_tradeoff_holds_the_cost_that_it_is_about(tmp_path: Path) -> None:
    comparison = _searched(tmp_path / "a", trials=3)
    expected = dict(comparison.settings.select("setting", "worker_s_mean").iter_rows())
    found = {row["setting"]: row["cost"] for row in series.tradeoff(comparison, "worker_s")}
    assert found == {"full fine-tuning": expected.pop("none"), **expected}
    notes = [row["note"] for row in _rows(figure("tradeoff-time", Subject(comparison, None))) if "note" in row]
    assert list(dict.fromkeys(notes)) == ["full fine-tuning: 0.600", "constant prediction: 0.030, far below this axis ↓"]


def test_zero_shot_stands_against_the_test_split(tmp_path: Path) -> None:
    comparison = _searched(tmp_path / "a", trials=2)
    expected = {row["setting"]: (row["test_last_mean"], row["zero_shot_last_mean"]) for row in comparison.settings.iter_rows(named=True)}
    found = {row["setting"]: (row["test"], row["elsewhere"]) for row in series.zero_shot(comparison)}
    assert found == {"full fine-tuning": expected.pop("none"), **expected}


def test_step_times_are_medians_of_windows_and_crowds_are_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [replace(FakeRun(f"t{n:04d}-s0", trial=n, frozen=0, step_s=float(n)), params={}) for n in range(1, 12)]
    comparison = compare([write_study(tmp_path / "a", [FULL, *slow], spec=study_spec(steps=6))])
    monkeypatch.setattr(series, "WINDOWS", 3)
    rows, band = series.step_time(comparison)
    assert band == []
    assert [(row["step"], row["seconds"]) for row in rows if row["run"] == "t0002-s0"] == [(0, 2.0), (2, 2.0), (4, 2.0)]
    monkeypatch.setattr(series, "CROWD", 5)
    rows, band = series.step_time(comparison)
    others = [row for row in band if row["kind"] == series.OTHER]
    assert {row["kind"] for row in rows} == {series.FULL_KIND, series.BEST}
    assert [row["runs"] for row in others] == [10, 10, 10]
    left = sorted(set(range(1, 12)) - {int(next(row["run"][1:5] for row in rows if row["kind"] == series.BEST))})
    assert others[0]["low"] == pytest.approx(np.quantile(left, 0.1))
    assert others[0]["seconds"] == pytest.approx(np.median(left))


def test_scores_stand_beside_the_thresholds_of_the_decisions(study: Path) -> None:
    comparison = compare([study])
    taus = series.thresholds(comparison, "t0000-s0")
    assert [row["step"] for row in taus] == [4, 8, 12, 16]
    assert {row["threshold"] for row in taus} == {0.2}
    assert (taus[0]["limited_by"], taus[1]["limited_by"]) == ("cap", "")
    assert [row for row in _rows(figure("score", Subject(comparison, "t0000-s0"))) if row.get("what") == "threshold"]


def _thawing(directory: Path) -> Comparison:
    """A run that freezes four of six groups at step 0, thaws two at step 8, and the rest at step 12."""
    study = write_study(directory, [], spec=study_spec(steps=20))
    start = start_of(replace(GOOD, run="t0000-s0"), study_spec(steps=20), small_groups())
    decided = [(0, 0, [0, 1, 2, 3], 2), (8, 1, [], 4), (12, 2, [], 6), (16, 3, [5], 5)]
    freezes = [Freeze(step, event, frozen, 100 * len(frozen), 100 * left, left, None, "", 0.001) for step, event, frozen, left in decided]
    write_events(directory, start, [*freezes, *(events.step(number) for number in range(20))])
    return compare([study])


def test_groups_that_thaw_are_not_drawn_as_frozen(tmp_path: Path) -> None:
    plan = series.schedule(_thawing(tmp_path / "a"), "t0000-s0")
    assert plan is not None
    spans = {
        group: [(bar["from"], bar["to"], bar["state"]) for bar in plan.bars if bar["group"] == f"net.{group}[0:4]"] for group in (0, 4, 5)
    }
    assert spans[0] == [(0, 8, series.FROZEN), (8, 12, series.UNKNOWN), (12, 20, series.ACTIVE)]
    assert spans[4] == [(0, 20, series.ACTIVE)]
    assert spans[5] == [(0, 16, series.ACTIVE), (16, 20, series.FROZEN)]
    assert [event["thawed"] for event in plan.events] == [0, 2, 2, 0]
    made = figure("schedule", Subject(_thawing(tmp_path / "b"), "t0000-s0"))
    assert "Groups thawed in this run; the records say how many, not which" in made.caption


def test_neighbours_with_one_fate_share_a_cell_where_groups_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [GroupInfo(f"layer.{n // 5}[{n % 5}]", f"layer.{n // 5}", "Linear", 10) for n in range(40)]
    comparison = compare([write_study(tmp_path / "a", [GOOD], spec=study_spec(steps=20, freeze={"warmup_steps": 4}), groups=groups)])
    whole = series.schedule(comparison, "t0000-s0")
    monkeypatch.setattr(series, "CELLS", 39)
    merged = series.schedule(comparison, "t0000-s0")
    assert whole is not None
    assert merged is not None
    assert (whole.is_merged, merged.is_merged) == (False, True)
    assert len(merged.bars) < len(whole.bars)
    assert sum(bar["elements"] * (bar["to"] - bar["from"]) for bar in merged.bars) == sum(
        bar["elements"] * (bar["to"] - bar["from"]) for bar in whole.bars
    )
    assert any("groups)" in bar["group"] for bar in merged.bars)
    assert "share a cell" in figure("schedule", Subject(comparison, "t0000-s0")).caption


def test_importance_is_drawn_as_it_was_found(tmp_path: Path) -> None:
    comparison = _searched(tmp_path / "a", trials=2)
    made = figure("importance", Subject(comparison, None, _insight({"freeze.threshold": 0.75, "freeze.every": 0.25})))
    shares = {row["setting"]: row["share"] for row in _rows(made)}
    assert shares == {"threshold": 0.75, "every": 0.25}


def test_trials_are_lines_through_all_axes(tmp_path: Path) -> None:
    comparison = _searched(tmp_path / "a", trials=4)
    axes, rows, labels = search_space.parallel(comparison)
    assert axes == ["threshold", "fisher.every", "freeze.every", "val/f1", "mean_active"]
    heights = {(row["trial"], row["axis"]): row["height"] for row in rows}
    assert len(heights) == len(rows) == 20
    assert [heights[f"trial {n}", "threshold"] for n in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-4)
    assert [heights[f"trial {n}", "freeze.every"] for n in range(4)] == [0, 0.5, 1, 0]
    assert {row["label"] for row in labels if row["axis"] == "freeze.every"} == {"8", "16"}


def test_a_setting_that_only_some_trials_have_breaks_no_line(tmp_path: Path) -> None:
    policies = [replace(_trial(number), params={"freeze.policy": ("fisher_drift", "freezeout")[number % 2]}) for number in range(3)]
    policies[0].params["freeze.threshold"] = -0.5
    search = {
        "freeze.policy": {"type": "categorical", "choices": ["fisher_drift", "freezeout"]},
        "freeze.threshold": {"type": "float", "low": -1, "high": 0, "when": "freeze.policy == fisher_drift"},
    }
    comparison = compare([write_study(tmp_path / "a", policies, spec=study_spec(steps=6, search=search))])
    _, rows, labels = search_space.parallel(comparison)
    assert {row["trial"] for row in rows if row["axis"] == "threshold"} == {"trial 0"}
    assert {(row["label"], row["height"]) for row in labels if row["axis"] == "policy"} == {("fisher_drift", 0.0), ("freezeout", 1.0)}


def test_the_map_shows_what_the_trials_near_by_reached(tmp_path: Path) -> None:
    comparison = _searched(tmp_path / "a")
    cells, points = search_space.landscape(comparison)
    assert len(points) == 12
    low, high = min(point["value"] for point in points), max(point["value"] for point in points)
    assert all(low <= cell["value"] <= high for cell in cells)
    corner = next(point for point in points if point["value"] == high)
    at = next(cell for cell in cells if cell["x"] <= corner["x"] <= cell["x2"] and cell["y"] <= corner["y"] <= cell["y2"])
    assert at["value"] > (low + high) / 2
    assert "Gaussian window of 19\N{NO-BREAK SPACE}% of each axis" in figure("landscape", Subject(comparison, None)).caption


def test_the_map_is_blank_where_no_trial_is_near(tmp_path: Path) -> None:
    places = [(-1.0, 8), (-1.0, 10), (-0.9, 8), (0.0, 24)]
    found = [replace(_trial(n), params={"freeze.threshold": x, "freeze.every": y}) for n, (x, y) in enumerate(places)]
    cells, _ = search_space.landscape(compare([write_study(tmp_path / "a", found, spec=study_spec(steps=6))]))
    assert not [cell for cell in cells if cell["x2"] > -0.2 and cell["y"] < 12]
    area = sum((cell["x2"] - cell["x"]) * (cell["y2"] - cell["y"]) for cell in cells)
    assert 0.2 < area / 16 < 0.6


def test_incomplete_trials_are_on_no_axis(tmp_path: Path) -> None:
    found = [_trial(0), _trial(1), replace(_trial(2), status=Status.FAILED, steps=3), replace(CHEAP, status=None, steps=2)]
    comparison = compare([write_study(tmp_path / "a", found, spec=study_spec(steps=6))])
    assert {row["trial"] for row in search_space.parallel(comparison)[1]} == {"trial 0", "trial 1"}
