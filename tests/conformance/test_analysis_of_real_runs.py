"""The comparison and the report of runs that the engine really trained, against what the engine itself returned."""

import polars as pl
import pytest
import torch

from fat_ray.analysis.compare import Comparison, compare
from fat_ray.analysis.report import render_report
from fat_ray.engine.loop import train
from fat_ray.engine.request import Request
from fat_ray.events import RunEnd
from fat_ray.records.manifest import create_study
from fat_ray.records.parquet import ParquetSink
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import Objective, StudySpec, as_json
from tests.support.jobs import task_of, tiny_job

METRIC = "f1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, dict[str, RunEnd]]:
    directory = tmp_path_factory.mktemp("study") / "tiny"
    base = tiny_job(directory, workers=1)
    objectives = [Objective(metric=f"val/{METRIC}", direction="maximize"), Objective(metric="mean_active", direction="minimize")]
    spec = StudySpec.model_validate_json(StudySpec(name="tiny", objectives=objectives).model_copy(update=dict(base.spec)).model_dump_json())
    create_study(directory, spec, "name: tiny\n", min_free_bytes=0)
    ends = {
        "none-s0": _train(
            tiny_job(directory, "none-s0", workers=1, policy="none").model_copy(update={"role": "baseline", "label": "none"})
        ),
        "t0000-s0": _train(tiny_job(directory, "t0000-s0", workers=1).model_copy(update={"role": "search", "trial": 0})),
        "t0001-s0": _train(tiny_job(directory, "t0001-s0", workers=1).model_copy(update={"role": "search", "trial": 1}), stop_at=5),
    }
    assert as_json(spec)["train"] == as_json(base.spec)["train"]
    return compare([directory]), ends


def _train(job: RunJob, stop_at: int | None = None) -> RunEnd:
    asked = iter(range(10_000))
    sink = ParquetSink(job.directory, job.run)
    return train(
        job,
        task_of(job),
        sink,
        device=torch.device("cpu"),
        stop_request=lambda: Request.PRUNE if next(asked) == stop_at else None,
        on_evaluation=lambda metrics: None,
    )


def test_every_row_repeats_what_the_engine_returned(trained: tuple[Comparison, dict[str, RunEnd]]) -> None:
    comparison, ends = trained
    assert set(comparison.runs["run"]) == set(ends)
    for run, end in ends.items():
        row = comparison.runs.row(by_predicate=pl.col("run") == run, named=True)
        for name in ("steps", "wall_s", "train_s", "worker_s", "updates", "flops", "mean_active", "mean_active_fraction"):
            assert row[name] == getattr(end, name), name
        assert row["status"] == end.status.value
        assert row["val_last"] == end.final[f"val/{METRIC}"]
        assert row["val_best"] == end.best[f"val/{METRIC}"]
        assert row["val_best_step"] == end.best[f"val/{METRIC}@step"]
        assert row["test_last"] == end.final.get(f"test/{METRIC}")
        assert (row["test_last"] is None) == row["partial"]


def test_freezing_saved_and_pruning_does_not_count(trained: tuple[Comparison, dict[str, RunEnd]]) -> None:
    comparison, _ = trained
    rows = {row["run"]: row for row in comparison.runs.iter_rows(named=True)}
    assert rows["none-s0"]["mean_active_fraction"] == rows["none-s0"]["final_active_fraction"] == 1.0
    assert rows["t0000-s0"]["final_active_fraction"] < rows["t0000-s0"]["mean_active_fraction"] < 1.0
    assert rows["t0000-s0"]["flops_ratio"] < 1.0
    assert (rows["t0001-s0"]["status"], rows["t0001-s0"]["on_front"]) == ("pruned", False)


def test_the_report_draws_them(trained: tuple[Comparison, dict[str, RunEnd]]) -> None:
    html = render_report(trained[0], run=None, library="")
    for chart in ("tradeoff", "validation", "active", "cost-time", "cost-flops", "schedule", "drift"):
        assert f'data-chart="{chart}"' in html
