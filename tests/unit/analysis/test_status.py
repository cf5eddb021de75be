import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fat_ray.analysis.status import as_json, as_text, read_status
from fat_ray.errors import FatRayError
from fat_ray.events import Eval, GroupInfo, RunEnd, RunStart, Status, Step
from fat_ray.records.manifest import create_study
from fat_ray.records.parquet import ParquetSink
from fat_ray.spec.study import Objective, StudySpec
from fat_ray.spec.study import as_json as spec_as_json

pytestmark = pytest.mark.timeout(10)  # writes and reads real records: a fifth of a second, more where many processes share the disk

BEGAN = datetime(2026, 3, 14, 9, 0, tzinfo=UTC)
SPEC = StudySpec.model_validate_json(
    '{"name": "small", "search": {"train.lr": {"type": "float", "low": 0.1, "high": 1.0}}, "budget": {"trials": 3},'
    '"seeds": [0, 1], "train": {"steps": 10}}'
)


def begin(directory: Path, run: str, *, minute: int, steps: int = 0, f1: float | None = None) -> ParquetSink:
    """Writes a run that has done some steps with 3/4 of its entries active, and leaves its records open."""
    sink = ParquetSink(directory, run)
    groups = [GroupInfo("a", "a", "Linear", 300), GroupInfo("b", "b", "Linear", 100)]
    sink.emit(RunStart(run, "small", None, 0, "search", "", {}, spec_as_json(SPEC.run), {}, groups, BEGAN + timedelta(minutes=minute)))
    for step in range(steps):
        sink.emit(Step(step, 1.0, 0.1, 1.0, 300, 8, 4e5, 3e5, 3e5, 0, 2400, 10**8, 0.1))
    if f1 is not None:
        sink.emit(Eval(0, "val", {"f1": 0.01, "loss": 2.0}, 0.1))
        sink.emit(Eval(steps, "val", {"f1": f1, "loss": 1.0}, 0.1))
        sink.emit(Eval(steps, "test", {"f1": 0.99, "loss": 0.5}, 0.1))
    sink.flush()
    return sink


def end(sink: ParquetSink, status: Status, reason: str = "") -> None:
    sink.emit(RunEnd(status, reason, 10, 65.0, 50.0, 130.0, 3000, 1e7, 300.0, 0.75))
    sink.flush()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    create_study(tmp_path / "small", SPEC, "name: small\n")
    return tmp_path / "small"


def test_without_a_search_the_base_setting_is_planned_once(tmp_path: Path) -> None:
    create_study(tmp_path, SPEC.model_copy(update={"search": {}}), "name: small\n")
    assert read_status(tmp_path).planned == 6  # with two baselines, two seeds each


def test_a_study_of_costs_alone_shows_the_metric_of_its_scheduler(tmp_path: Path) -> None:
    costs = [Objective(metric="mean_active", direction="minimize")]
    create_study(tmp_path, SPEC.model_copy(update={"objectives": costs}), "name: small\n")
    assert read_status(tmp_path).metric == "val/f1"


def test_study_without_runs(study: Path) -> None:
    status = read_status(study)
    assert (status.planned, status.counts, status.runs) == (10, {}, [])
    assert as_text(status) == "small: 0 of 10 runs begun: nothing has begun"


def test_counts_and_runs(study: Path) -> None:
    end(begin(study, "t0001-s0", minute=0, steps=10, f1=0.5), Status.COMPLETED)
    end(begin(study, "t0000-s0", minute=1, steps=3), Status.DIVERGED, "the loss became nan\nat step 3")
    begin(study, "t0002-s0", minute=2, steps=4, f1=0.25)
    begin(study, "t0003-s0", minute=3)
    status = read_status(study, now=BEGAN + timedelta(minutes=4))
    assert status.counts == {"completed": 1, "diverged": 1, "running": 2}
    assert [run.run for run in status.runs] == ["t0001-s0", "t0000-s0", "t0002-s0", "t0003-s0"]
    done, diverged, going, fresh = status.runs
    assert (done.state, done.step, done.steps, done.value, done.active_fraction, done.elapsed_s) == ("completed", 10, 10, 0.5, 0.75, 65.0)
    assert (diverged.state, diverged.value, diverged.reason) == ("diverged", None, "the loss became nan at step 3")
    assert (going.state, going.step, going.value, going.elapsed_s) == ("running", 4, 0.25, 120.0)
    assert (fresh.step, fresh.value, fresh.active_fraction) == (0, None, None)


def test_text_and_json_say_the_same(study: Path) -> None:
    begin(study, "t0000-s0", minute=0, steps=4, f1=0.25)
    status = read_status(study, now=BEGAN + timedelta(seconds=75))
    heading, columns, line = as_text(status).splitlines()
    assert heading == "small: 1 of 10 runs begun: 1 running"
    assert columns.split() == ["run", "state", "step", "last", "val/f1", "active", "elapsed"]
    assert line.split() == ["t0000-s0", "running", "4/10", "0.2500", "75%", "1:15"]
    document = json.loads(as_json(status))
    assert document["counts"] == {"running": 1}
    assert document["runs"][0] == {
        "run": "t0000-s0",
        "state": "running",
        "step": 4,
        "steps": 10,
        "value": 0.25,
        "active_fraction": 0.75,
        "elapsed_s": 75.0,
        "reason": "",
    }


def test_half_written_part_is_not_seen(study: Path) -> None:
    begin(study, "t0000-s0", minute=0, steps=4)
    part = next((study / "records" / "steps" / "t0000-s0").iterdir())
    (part.parent / f".{part.name}.tmp").write_bytes(part.read_bytes()[:50])
    assert read_status(study).runs[0].step == 4


def test_directory_without_study(tmp_path: Path) -> None:
    with pytest.raises(FatRayError, match=r"no study\.json"):
        read_status(tmp_path)
