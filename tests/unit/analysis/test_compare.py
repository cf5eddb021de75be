import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fat_ray.analysis.compare import RUN_COLUMNS, Comparison, Options, compare
from fat_ray.errors import InputError, RecordError
from fat_ray.events import Eval, Status
from fat_ray.records.compact import compact
from fat_ray.records.place import place_of
from tests.support.studies import FakeRun, small_groups, start_of, study_spec, write_events, write_study
from tests.unit.analysis.conftest import CHEAP, FULL, GOOD, MATCHED, PRUNED

pytestmark = pytest.mark.timeout(10)  # writes and reads real records: a fifth of a second, more where many processes share the disk


def _row(comparison: Comparison, run: str) -> dict[str, object]:
    return comparison.runs.row(by_predicate=pl.col("run") == run, named=True)


def test_every_run_is_one_row_with_all_columns_ranked_ones_first(study: Path) -> None:
    runs = compare([study]).runs
    assert dict(runs.schema) == RUN_COLUMNS
    assert runs["run"].to_list()[:4] == ["none-s0", "t0000-s0", "t0001-s0", "random_matched-s0"]
    assert runs["pareto_rank"].to_list() == [1, 1, 1, 2, None, None, None]


def test_runs_that_did_not_complete_are_listed_and_never_on_the_front(study: Path) -> None:
    comparison = compare([study])
    for run, status, steps in (("t0002-s0", "pruned", 12), ("t0003-s0", "failed", 5), ("t0004-s0", "running", 11)):
        row = _row(comparison, run)
        assert (row["status"], row["steps"], row["partial"]) == (status, steps, True)
        assert (row["on_front"], row["pareto_rank"]) == (False, None)
        assert (row["delta_val"], row["flops_ratio"], row["train_s_ratio"]) == (None, None, None)
    pruned = _row(comparison, "t0002-s0")
    assert isinstance(pruned["val_last"], float)
    assert pruned["val_last"] > 0.7  # better than all others, and still not ranked
    assert comparison.best is not None
    assert comparison.best["setting"] == "trial 0"


def test_a_running_run_shows_its_progress_so_far(study: Path) -> None:
    row = _row(compare([study]), "t0004-s0")
    assert row["train_s"] is not None
    assert row["flops"] is not None
    assert row["val_last_step"] == 10
    assert isinstance(row["mean_active_fraction"], float)
    assert 0 < row["mean_active_fraction"] <= 1
    assert row["wall_s"] is None


def test_last_is_the_latest_and_best_the_most_favourable_evaluation(tmp_path: Path) -> None:
    run, spec = FakeRun("t0000-s0", trial=0, f1=0.5, frozen=0), study_spec(steps=20)
    study = write_study(tmp_path / "a", [run], spec=spec)
    write_events(study, start_of(run, spec, small_groups()), [Eval(12, "val", {"f1": 0.9}, 0.1), Eval(14, "val", {"f1": 0.9}, 0.1)])
    row = _row(compare([study]), "t0000-s0")
    assert (row["val_last"], row["val_last_step"]) == (pytest.approx(0.5), 20)
    assert row["val_at_budget"] == row["val_last"]
    assert (row["val_best"], row["val_best_step"]) == (0.9, 12)  # the earliest of equals


def test_only_a_completed_run_has_a_value_at_the_budget(tmp_path: Path) -> None:
    runs = [
        FakeRun("t0000-s0", trial=0),
        FakeRun("t0001-s0", trial=1, status=Status.PRUNED, steps=12),
        FakeRun("t0002-s0", trial=2, status=None, steps=12),
    ]
    comparison = compare([write_study(tmp_path / "a", runs, spec=study_spec(steps=20))])
    found = {row["run"]: (row["val_last"] is None, row["val_at_budget"] is None) for row in comparison.runs.iter_rows(named=True)}
    assert found == {"t0000-s0": (False, False), "t0001-s0": (False, True), "t0002-s0": (False, True)}


def test_the_best_of_a_metric_that_falls_is_its_minimum(tmp_path: Path) -> None:
    objectives = [{"metric": "val/loss", "direction": "minimize"}]
    runs = [FakeRun("t0000-s0", trial=0, f1=0.5), FakeRun("t0001-s0", trial=1, f1=0.7)]
    comparison = compare([write_study(tmp_path / "a", runs, spec=study_spec(steps=8, objectives=objectives))])
    assert comparison.metric == "loss"
    assert _row(comparison, "t0000-s0")["val_best"] == pytest.approx(0.5)
    assert comparison.best is not None
    assert comparison.best["setting"] == "trial 1"
    assert comparison.runs["pareto_rank"].to_list() == [1, 2]


def test_differences_and_ratios_are_against_full_fine_tuning_of_the_same_seed(tmp_path: Path) -> None:
    runs = [
        replace(FULL, f1=0.60, step_s=1.0),
        replace(FULL, run="none-s1", seed=1, f1=0.70, step_s=2.0),
        FakeRun("t0000-s0", trial=0, f1=0.61, frozen=0, step_s=0.5),
        FakeRun("t0000-s1", trial=0, seed=1, f1=0.68, frozen=0, step_s=0.5),
    ]
    comparison = compare([write_study(tmp_path / "a", runs, spec=study_spec(steps=8, seeds=[0, 1]))])
    first, second = _row(comparison, "t0000-s0"), _row(comparison, "t0000-s1")
    assert (first["delta_val"], second["delta_val"]) == (pytest.approx(0.01), pytest.approx(-0.02))
    assert (first["train_s_ratio"], second["train_s_ratio"]) == (pytest.approx(0.5), pytest.approx(0.25))
    assert first["flops_ratio"] == first["comm_bytes_ratio"] == first["mean_peak_memory_bytes_ratio"] == pytest.approx(1.0)
    trial = comparison.settings.row(by_predicate=pl.col("setting") == "trial 0", named=True)
    assert trial["delta_val_mean"] == pytest.approx(-0.005)
    assert trial["delta_val_sd"] == pytest.approx(statistics.stdev([0.01, -0.02]))
    assert trial["val_last_mean"] == pytest.approx(0.645)
    assert trial["val_last_sd"] == pytest.approx(statistics.stdev([0.61, 0.68]))
    assert comparison.several_seeds


def test_costs_against_full_fine_tuning_are_those_of_the_steps(study: Path) -> None:
    row, full = (_row(compare([study]), run) for run in ("t0000-s0", "none-s0"))
    total = sum(group.elements for group in small_groups())
    assert (full["comm_bytes"], full["mean_optimizer_bytes"]) == (4 * total * full["steps"], 8 * total)
    assert row["comm_bytes_ratio"] == row["mean_optimizer_bytes_ratio"] == pytest.approx(row["mean_active"] / total)
    assert row["mean_peak_memory_bytes_ratio"] == pytest.approx((10**8 + 16 * row["mean_active"]) / (10**8 + 16 * total))
    assert row["peak_memory_bytes"] == full["peak_memory_bytes"]  # before the first freeze


def test_what_a_single_worker_or_old_records_do_not_say_has_no_ratio(tmp_path: Path) -> None:
    one, old = write_study(tmp_path / "one", [FULL, GOOD]), write_study(tmp_path / "old", [FULL, GOOD])
    for study, change in ((one, _send_nothing), (old, _forget)):
        for part in [*study.glob("records/steps/*/*"), *study.glob("records/ends/*/*")]:
            pq.write_table(change(pq.read_table(part)), part)
    silent, unknown = (_row(compare([study]), "t0000-s0") for study in (one, old))
    assert (silent["comm_bytes"], silent["comm_bytes_ratio"]) == (0, None)
    assert {unknown[name] for name in unknown if "_bytes" in name} == {None}
    assert unknown["flops_ratio"] is not None


def _send_nothing(table: pa.Table) -> pa.Table:
    return table.set_column(table.schema.get_field_index("comm_bytes"), "comm_bytes", pa.array([0] * len(table), pa.int64()))


def _forget(table: pa.Table) -> pa.Table:
    kept = [name for name in table.column_names if not name.endswith("_bytes")]
    return table.select(kept)


def test_one_seed_has_no_deviation(study: Path) -> None:
    settings = compare([study]).settings
    assert settings["val_last_sd"].null_count() == settings.height


def test_without_a_completed_full_run_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    failed = replace(FULL, status=Status.FAILED, steps=3, reason="killed")
    comparison = compare([write_study(tmp_path / "a", [failed, GOOD], spec=study_spec(steps=20))])
    assert _row(comparison, "t0000-s0")["delta_val"] is None
    assert _row(comparison, "t0000-s0")["flops_ratio"] is None


def test_a_setting_counts_only_when_all_its_planned_seeds_completed(tmp_path: Path) -> None:
    runs = [
        GOOD,
        replace(GOOD, run="t0000-s1", seed=1, status=Status.PRUNED, steps=10),
        CHEAP,
        replace(CHEAP, run="t0001-s1", seed=1),
        FakeRun("t0005-s0", trial=5, f1=0.9),  # its second seed has not started
    ]
    settings = compare([write_study(tmp_path / "a", runs, spec=study_spec(steps=20, seeds=[0, 1]))]).settings
    ranked = dict(settings.select("setting", "pareto_rank").iter_rows())
    assert ranked == {"trial 1": 1, "trial 0": None, "trial 5": None}
    assert dict(settings.select("setting", "completed").iter_rows())["trial 0"] == 1


def test_a_nan_objective_is_unknown_and_not_ranked(tmp_path: Path) -> None:
    runs = [FakeRun("t0000-s0", trial=0, f1=float("nan")), CHEAP]
    comparison = compare([write_study(tmp_path / "a", runs, spec=study_spec(steps=8))])
    row = _row(comparison, "t0000-s0")
    assert (row["val_last"], row["val_best"], row["pareto_rank"]) == (None, None, None)
    assert _row(comparison, "t0001-s0")["on_front"] is True


def test_the_constant_prediction_is_a_reference(study: Path, tmp_path: Path) -> None:
    assert compare([study]).references.rows() == [("crack-quick", pytest.approx(0.03), pytest.approx(0.03), pytest.approx(0.03))]
    silent = write_study(tmp_path / "b", [GOOD], spec=study_spec(steps=20), constant_f1=None)
    assert compare([silent]).references.is_empty()


def test_a_study_that_has_written_nothing_yet(tmp_path: Path) -> None:
    comparison = compare([write_study(tmp_path / "a", [])])
    assert comparison.runs.is_empty()
    assert dict(comparison.runs.schema) == RUN_COLUMNS
    assert comparison.best is None
    assert not comparison.several_seeds


def test_a_run_that_has_only_started(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", [GOOD], spec=study_spec(steps=20))
    for table in ("steps", "evals", "drift", "events", "freezes", "ends"):
        (study / "records" / table / "t0000-s0" / "part-00000.parquet").unlink()
    row = _row(compare([study]), "t0000-s0")
    assert (row["status"], row["steps"], row["val_last"], row["mean_active"]) == ("running", None, None, None)


def test_several_studies_are_ranked_together_and_their_differences_are_said(tmp_path: Path) -> None:
    first = write_study(tmp_path / "a", [FULL, GOOD], spec=study_spec("first", steps=20))
    objectives = [{"metric": "val/f1", "direction": "maximize"}]
    second = write_study(tmp_path / "b", [FULL, CHEAP, PRUNED], spec=study_spec("second", steps=40, objectives=objectives))
    comparison = compare([first, second])
    assert comparison.runs.height == 5
    assert len(comparison.objectives) == 2
    assert comparison.notes == [
        "second has other objectives than first; all runs are ranked by those of first.",
        "second and first differ in train: their values are not directly comparable.",
    ]
    deltas = comparison.runs.filter(run="t0001-s0")["delta_val"].to_list()
    assert deltas == [pytest.approx(CHEAP.f1 - FULL.f1)]  # against the full run of its own study


def test_baselines_take_part_in_the_ranking(tmp_path: Path) -> None:
    better = replace(MATCHED, f1=0.9, frozen=1.0)
    comparison = compare([write_study(tmp_path / "a", [better, GOOD], spec=study_spec(steps=20, freeze={"warmup_steps": 4}))])
    assert _row(comparison, "random_matched-s0")["pareto_rank"] == 1
    assert comparison.best is not None
    assert comparison.best["setting"] == "trial 0"  # the best trial is a trial, also behind a baseline


def test_no_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no study"):
        compare([tmp_path / "nowhere"])


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full fine-tuning, a setting that is better by 0.02, and one that is worse, with three seeds each."""
    better = FakeRun("t0000", trial=0, frozen=0.9, params={"freeze.threshold": -0.5, "freeze.every": 2, "fisher.every": 2})
    worse = FakeRun("t0001", trial=1, frozen=1.0, params={"freeze.threshold": -0.1, "freeze.every": 2, "fisher.every": 8})
    values = {"none": [0.60, 0.61, 0.62], "t0000": [0.62, 0.63, 0.64], "t0001": [0.40, 0.45, 0.41]}
    runs = [
        replace(run, run=f"{name}-s{seed}", seed=seed, f1=value, test_f1=value - 0.1 * (seed + 1))
        for name, run in (("none", FULL), ("t0000", better), ("t0001", worse))
        for seed, value in enumerate(values[name])
    ]
    spec = study_spec("seeds", steps=8, seeds=[0, 1, 2], freeze={"warmup_steps": 2})
    return write_study(tmp_path_factory.mktemp("seeds") / "study", runs, spec=spec)


def _setting(comparison: Comparison, name: str) -> dict[str, object]:
    return comparison.settings.row(by_predicate=pl.col("setting") == name, named=True)


def test_seeds_are_compared_in_pairs_with_the_baseline(seeds: Path) -> None:
    comparison = compare([seeds])
    better, worse, full = (_setting(comparison, name) for name in ("trial 0", "trial 1", "none"))
    assert (better["n"], better["pairs"], full["pairs"]) == (3, 3, 0)
    assert better["value_mean"] == pytest.approx(0.63)
    assert better["difference_mean"] == pytest.approx(0.02)
    assert worse["difference_mean"] == pytest.approx(-0.19)
    assert worse["difference_low"] == pytest.approx(-0.21) or worse["difference_low"] > -0.22
    assert (better["p"], better["p_holm"], better["verdict"]) == (0.25, 0.5, "too few seeds")
    assert comparison.runs.filter(run="t0001-s1")["difference"].to_list() == [pytest.approx(0.45 - 0.61)]


def test_another_metric_and_another_baseline(seeds: Path) -> None:
    comparison = compare([seeds], Options(metric="test/f1", baseline="trial 0"))
    full = _setting(comparison, "none")
    assert full["value_mean"] == pytest.approx(0.61 - 0.2)
    assert full["difference_mean"] == full["delta_test_mean"] == pytest.approx(-0.02)
    assert full["flops_ratio_mean"] > 1
    assert _setting(comparison, "trial 0")["verdict"] == "baseline"


def test_costs_are_compared_too_and_less_is_better(seeds: Path) -> None:
    comparison = compare([seeds], Options(metric="flops"))
    assert comparison.metric == "f1"
    trial = _setting(comparison, "trial 0")
    assert trial["value_mean"] == trial["flops_mean"]
    assert trial["difference_mean"] < 0
    assert comparison.measure.direction == "minimize"


def test_a_metric_that_no_objective_names_is_better_when_larger_unless_it_is_a_loss(seeds: Path) -> None:
    assert compare([seeds], Options(metric="test/iou")).direction == "maximize"
    assert compare([seeds], Options(metric="zero_shot/loss")).direction == "minimize"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "test/f2"}, r"--metric test/f2: no run has recorded it; there are val/f1, val/iou"),
        ({"metric": "f1"}, r"--metric f1: must be SPLIT/METRIC, such as test/f1, or one of mean_active"),
        ({"baseline": "trial 7"}, r"--baseline trial 7: no study has a setting of this name; there are none, trial 0 and trial 1"),
        ({"where": ["freeze.treshold < 0"]}, r"--where freeze.treshold: there is no such field; did you mean freeze.threshold"),
        ({"where": ["on_front == true"]}, r"--where on_front: ranks are those among the runs that are left"),
        ({"sort": "tset_last"}, r"--sort tset_last: there is no such field; did you mean test_last"),
    ],
)
def test_what_does_not_exist_is_named(seeds: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare([seeds], Options(**options))


def test_conditions_choose_runs_and_the_baseline_is_compared_with_in_any_case(seeds: Path) -> None:
    comparison = compare([seeds], Options(where=["freeze.threshold < -0.2", "role == search", "seed < 2"]))
    assert comparison.runs["run"].to_list() == ["t0000-s0", "t0000-s1"]
    assert comparison.runs["difference"].to_list() == [pytest.approx(0.02)] * 2
    assert comparison.runs["pareto_rank"].to_list() == [1, 1]  # all of its seeds completed
    assert compare([seeds], Options(where=["status == failed"])).runs.is_empty()


def test_rows_come_in_the_order_that_is_asked_for(seeds: Path) -> None:
    by_test = compare([seeds], Options(sort="test/f1:desc"))
    assert by_test.settings["setting"].to_list() == ["trial 0", "none", "trial 1"]
    assert by_test.runs["test_last"].to_list() == sorted(by_test.runs["test_last"], reverse=True)
    by_field = compare([seeds], Options(sort="fisher.every"))
    assert by_field.settings["setting"].to_list()[-1] == "trial 1"


def test_single_runs_are_compared_and_keep_their_baseline(seeds: Path) -> None:
    comparison = compare([seeds / "t0000-s1", seeds / "t0001-s1"])
    assert sorted(comparison.runs["run"].to_list()) == ["t0000-s1", "t0001-s1"]
    assert sorted(comparison.runs["delta_val"].to_list()) == [pytest.approx(-0.16), pytest.approx(0.02)]
    assert not comparison.several_seeds


def test_the_baseline_of_the_only_study_that_has_it_serves_all(seeds: Path, tmp_path: Path) -> None:
    runs = [FakeRun(f"t0000-s{seed}", trial=0, seed=seed, f1=0.7) for seed in range(3)]
    other = write_study(tmp_path / "other", runs, spec=study_spec("other", steps=8, seeds=[0, 1, 2]))
    comparison = compare([seeds, other])
    found = comparison.settings.filter(study="other").row(0, named=True)
    assert (found["pairs"], found["difference_mean"]) == (3, pytest.approx(0.09))
    assert "other has no none: its runs are compared with none of seeds, seed by seed." in comparison.notes


@pytest.mark.parametrize("table", ["steps", "evals"])
def test_a_last_part_that_is_missing_is_noticed_by_what_the_end_says(table: str, tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", [FULL, GOOD, CHEAP], spec=study_spec(steps=20))
    part = study / "records" / "ends" / "t0000-s0" / "part-00000.parquet"
    ends = pq.read_table(part)
    pq.write_table(ends.set_column(ends.schema.get_field_index("final_json"), "final_json", pa.array(['{"val/f1": 0.58}'])), part)
    assert compare([study]).damage == []
    rows = pq.read_table(lost := study / "records" / table / "t0000-s0" / "part-00000.parquet")
    pq.write_table(rows.slice(0, len(rows) - 12), lost)  # the last twelve rows had been a part of their own
    comparison = compare([study])
    assert sorted(comparison.runs["run"].to_list()) == ["none-s0", "t0001-s0"]
    (sentence,) = comparison.damage
    assert sentence.startswith(f"Left out: t0000-s0. {study}/records/{table}/t0000-s0 ")
    assert sentence.endswith("that the run's end speaks of: a part is missing.")


def test_a_study_elsewhere_is_compared_as_a_local_one(seeds: Path) -> None:
    place = place_of("fsspec+memory://compare/seeds")
    for path in seeds.rglob("*.*"):
        place.write(str(path.relative_to(seeds)), path.read_bytes())
    comparison = compare(["fsspec+memory://compare/seeds"], Options(margin=0.05))
    assert comparison.runs.equals(compare([seeds]).runs)
    assert comparison.settings.equals(compare([f"file://{seeds}"], Options(margin=0.05)).settings)


def test_many_small_files_are_a_reason_to_compact(seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(seeds, tmp_path / "study")
    assert compare([tmp_path / "study"]).notes == []
    monkeypatch.setattr("fat_ray.analysis.compare._MANY_RUNS", 9)
    (note,) = compare([tmp_path / "study"]).notes
    assert note == f"9 runs of seeds lie in many small files: fat-ray compact {tmp_path / 'study'} makes them quicker to read."
    compact(tmp_path / "study")
    assert compare([tmp_path / "study"]).notes == []
