from math import isnan
from pathlib import Path

import pytest

from fat_ray.events import Status
from fat_ray.records.metrics import AXIS, TABLES_SHOWN, MetricRow, metric_name, metric_rows, summary_values
from fat_ray.records.reader import read_table
from fat_ray.records.schema import TABLES
from tests.support.runs import end, write_run


@pytest.fixture
def shown(tmp_path: Path) -> None:
    write_run(tmp_path)
    rows = metric_rows({table: read_table(tmp_path, table, "t0003-s0") for table in TABLES_SHOWN}, 481)
    return {row[AXIS]: row for row in rows}


def test_rows_are_merged_by_step_in_order(shown: dict[int, MetricRow]) -> None:
    assert list(shown) == [0, 1, 2, 3, 4, 5]
    assert shown[0]["val/f1"] == 0.125
    assert shown[0]["train/loss"] == 0.5


def test_a_step_shows_training_freezing_and_performance(shown: dict[int, MetricRow]) -> None:
    expected = {
        AXIS: 3,
        "train/loss": 0.2,
        "train/lr": 1e-3,
        "train/grad_norm": 0.25,
        "freeze/active_elements": 449,
        "freeze/active_fraction": 449 / 481,
        "perf/step_s": 0.125,
        "perf/flops": 1e9,
        "perf/flops_forward": 4e8,
        "perf/flops_input_gradient": 3.5e8,
        "perf/flops_weight_gradient": 2.5e8,
        "perf/comm_bytes": 1872,
        "perf/optimizer_bytes": 3744,
        "perf/peak_memory_bytes": 49_999_997,
        "perf/samples_per_s": 64.0,
    }
    assert shown[3] == expected


def test_drift_is_summarised_over_the_groups_that_were_measured(shown: dict[int, MetricRow]) -> None:
    statistics = {name: shown[2][f"drift/{name}"] for name in ("mean", "median", "min", "max")}
    assert statistics == pytest.approx({"mean": 0.3, "median": 0.3, "min": 0.1, "max": 0.5}, rel=1e-15)
    counts, edges = shown[2]["drift/histogram"]
    assert (counts.sum(), edges[0], edges[-1]) == (3, 0.1, 0.5)
    assert "drift/mean" not in shown[0]  # the first update measures nothing


def test_a_decision_shows_its_threshold_where_it_has_one(shown: dict[int, MetricRow]) -> None:
    assert (shown[1]["freeze/threshold"], shown[1]["freeze/frozen_groups"]) == (0.05, 0)
    assert "freeze/threshold" not in shown[2]
    assert (shown[2]["freeze/frozen_groups"], shown[2]["freeze/active_groups"], shown[2]["freeze/frozen_elements"]) == (1, 3, 32)


def test_nan_is_shown_as_nan_and_names_are_made_plottable(shown: dict[int, MetricRow]) -> None:
    assert isnan(shown[4]["train/loss"])
    assert isnan(shown[5]["val/loss"])
    assert shown[5]["zero_shot_blur/f1"] == 0.375


def test_no_rows_show_nothing() -> None:
    assert metric_rows({table: TABLES[table].empty_table() for table in TABLES_SHOWN}, 0) == []


@pytest.mark.parametrize(
    ("name", "accepted"),
    [("val/f1", "val/f1"), ("zero-shot/f1@0.5", "zero_shot/f1_0_5"), ("3d/2x", "_3d/_2x"), ("a//é", "a/_/_"), ("_x/y_1", "_x/y_1")],
)
def test_names_become_identifiers(name: str, accepted: str) -> None:
    assert metric_name(name) == accepted


def test_the_summary_holds_status_costs_and_metrics() -> None:
    shown = summary_values(end(Status.PRUNED, "asha"))
    assert (shown["status"], shown["reason"], shown["steps"]) == ("pruned", "asha", 5)
    assert (shown["cost/flops"], shown["cost/updates"], shown["cost/mean_active"]) == (5e9, 2341, 468.2)
    assert (shown["cost/comm_bytes"], shown["cost/optimizer_bytes"], shown["cost/peak_memory_bytes"]) == (9744, 4000, 50_000_000)
    assert (shown["last/zero_shot_blur/f1"], shown["best/val/f1"]) == (0.375, 0.5)
    assert not [name for name in shown if name.startswith("at_budget/")]


def test_only_a_completed_run_has_values_at_the_budget() -> None:
    shown = summary_values(end())
    assert (shown["at_budget/val/f1"], shown["last/val/f1"], shown["best/val/f1"]) == (0.5, 0.5, 0.5)


def test_a_run_without_an_end_failed() -> None:
    assert summary_values(None)["status"] == "failed"
