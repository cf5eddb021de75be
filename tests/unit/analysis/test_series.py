from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from fat_ray.analysis import series
from fat_ray.analysis.compare import Comparison, compare
from fat_ray.events import GroupInfo
from fat_ray.view import text
from tests.support.studies import FakeRun, lite0_groups, small_groups, study_spec, write_study
from tests.unit.analysis.conftest import GOOD

pytestmark = pytest.mark.timeout(10)  # writes and reads real records: a fifth of a second, more where many processes share the disk


def _comparison(directory: Path, *runs: FakeRun, groups: list[GroupInfo] | None = None, steps: int = 20) -> Comparison:
    spec = study_spec(steps=steps, freeze={"warmup_steps": 4})
    return compare([write_study(directory, runs, spec=spec, groups=groups)])


def test_every_run_has_a_class(study: Path) -> None:
    assert series.kinds(compare([study])) == {
        "none-s0": series.FULL_KIND,
        "random_matched-s0": series.BASELINE,
        "t0000-s0": series.BEST,
        "t0001-s0": series.OTHER,
        **dict.fromkeys(("t0002-s0", "t0003-s0", "t0004-s0"), series.INCOMPLETE),
    }


def test_the_tradeoff_holds_completed_settings_and_the_front_of_its_axes(study: Path) -> None:
    points = {row["setting"]: row for row in series.tradeoff(compare([study]))}
    assert {name: row["front"] for name, row in points.items()} == {
        "full fine-tuning": True,
        "trial 0": True,
        "trial 1": True,
        "random matched": False,
    }
    assert points["trial 0"]["value"] == pytest.approx(0.58)
    assert points["trial 0"]["params"] == f"threshold {text.MINUS}0.5, fisher.every 2, freeze.every 4"


def test_the_front_of_a_metric_that_falls_runs_along_its_least_values(tmp_path: Path) -> None:
    # The loss of a fake run is 1 - f1.
    runs = [FakeRun("t0000-s0", trial=0, f1=0.7, frozen=0.5), FakeRun("t0001-s0", trial=1, f1=0.5, frozen=0.5)]
    objectives = [{"metric": "val/loss", "direction": "minimize"}]
    comparison = compare([write_study(tmp_path / "a", runs, spec=study_spec(steps=8, objectives=objectives))])
    points = {row["setting"]: (row["value"], row["front"]) for row in series.tradeoff(comparison)}
    assert points == {"trial 0": (pytest.approx(0.3), True), "trial 1": (pytest.approx(0.5), False)}


def test_the_active_fraction_keeps_its_changes_and_ends_only(tmp_path: Path) -> None:
    rows = series.active_fraction(_comparison(tmp_path / "a", GOOD))
    steps = [row["step"] for row in rows]
    fractions = [row["fraction"] for row in rows]
    assert (steps[0], steps[-1], fractions[0]) == (0, 19, 1.0)
    assert len(rows) < 10
    assert fractions == sorted(fractions, reverse=True)
    assert all(a != b for a, b in pairwise(fractions[:-1]))


def test_the_schedule_covers_every_step_of_every_group_once(tmp_path: Path) -> None:
    groups = small_groups()
    plan = series.schedule(_comparison(tmp_path / "a", GOOD, groups=groups), "t0000-s0")
    assert plan is not None
    assert plan.steps == 20
    tops = []
    for group in groups:
        spans = sorted((bar for bar in plan.bars if bar["group"] == group.name), key=lambda bar: bar["from"])
        assert [spans[0]["from"], spans[-1]["to"]] == [0, 20]
        assert [bar["state"] for bar in spans] in (["active"], ["active", "frozen"])
        if len(spans) == 2:
            assert spans[0]["to"] == spans[1]["from"]
            assert spans[0]["fate"] == f"frozen at step {spans[1]['from']}"
        tops.append(spans[0]["y0"])
    assert tops == sorted(tops)
    assert {bar["state"] for bar in plan.bars} == {"active", "frozen"}
    assert sum(event["frozen_groups"] for event in plan.events) == sum(bar["state"] == "frozen" for bar in plan.bars)


@pytest.mark.parametrize("groups", [lite0_groups(), small_groups(300), small_groups(900)], ids=["lite0", "300", "900"])
def test_layer_names_never_collide_and_the_chart_stays_printable(tmp_path: Path, groups: list[GroupInfo]) -> None:
    plan = series.schedule(_comparison(tmp_path / "a", replace(GOOD, frozen=0), groups=groups, steps=4), "t0000-s0")
    assert plan is not None
    places = sorted(plan.labels)
    assert min(b - a for a, b in pairwise(places)) >= 11
    assert plan.height <= 4000
    assert len(plan.bars) == len(groups)
    layers = {group.layer for group in groups}
    assert set(plan.labels.values()) <= layers
    if len(layers) <= 150:
        assert set(plan.labels.values()) == layers


def test_no_schedule_without_groups(tmp_path: Path) -> None:
    comparison = _comparison(tmp_path / "a", GOOD)
    (tmp_path / "a" / "records" / "groups" / "t0000-s0" / "part-00000.parquet").unlink()
    assert series.schedule(comparison, "t0000-s0") is None


def test_drift_is_averaged_over_the_measured_groups_of_a_kind(tmp_path: Path) -> None:
    rows = series.drift(_comparison(tmp_path / "a", replace(GOOD, frozen=0.01), groups=small_groups(6)), "t0000-s0")
    assert {row["kind"] for row in rows} == {"Conv2d", "BatchNorm2d"}
    assert all(row["groups"] == 3 for row in rows)
    assert min(row["update"] for row in rows) == 1  # the first update measures nothing
    first = {row["kind"]: row["drift"] for row in rows if row["update"] == 1}
    assert 0.05 < first["Conv2d"] < first["BatchNorm2d"] < 0.6


def test_rare_kinds_are_drawn_together(tmp_path: Path) -> None:
    groups = [GroupInfo(f"g{i}", f"g{i}", f"Kind{i // 2}" if i < 8 else f"Rare{i}", 10) for i in range(10)]
    rows = series.drift(_comparison(tmp_path / "a", replace(GOOD, frozen=0.01), groups=groups), "t0000-s0", most=4)
    assert {row["kind"] for row in rows} == {"Kind0", "Kind1", "Kind2", "Kind3", "other"}
