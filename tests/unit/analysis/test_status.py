"""How a study stands, from its records and what its driver says."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from fat_ray.analysis.follow import follow, show
from fat_ray.analysis.status import as_json, read_status
from fat_ray.errors import InputError, RecordError
from fat_ray.events import Eval, GroupInfo, RunEnd, RunStart, Status, Step
from fat_ray.records.driver import DriverReport, this_host, write_report
from fat_ray.records.manifest import create_study
from fat_ray.records.parquet import ParquetSink
from fat_ray.spec.baseline import BaselineSpec
from fat_ray.spec.study import Objective, StudySpec
from fat_ray.spec.study import as_json as spec_as_json

pytestmark = pytest.mark.timeout(10)  # writes and reads real records: a fifth of a second, more where many processes share the disk

BEGAN = datetime(2026, 3, 14, 9, 0, tzinfo=UTC)
SPEC = StudySpec.model_validate_json(
    '{"name": "small", "search": {"freeze.threshold": {"type": "float", "low": -1.0, "high": 1.0}}, "budget": {"trials": 3},'
    '"seeds": [0, 1], "train": {"steps": 10}}'
)


def begin(directory: Path, trial: int, seed: int = 0, *, minute: int, steps: int = 0, f1: Sequence[float] = ()) -> ParquetSink:
    """Writes a run that has done some steps, half of its entries frozen from the third on, and leaves its records open."""
    run = f"t{trial:04d}-s{seed}"
    sink = ParquetSink(directory, run)
    groups = [GroupInfo("a", "a", "Linear", 300), GroupInfo("b", "b", "Linear", 100)]
    at = BEGAN + timedelta(minutes=minute)
    params = {"freeze.threshold": trial / 10}
    sink.emit(RunStart(run, "small", trial, seed, "search", "", params, spec_as_json(SPEC.run), {}, groups, at))
    for step in range(steps):
        sink.emit(Step(step, 1.0, 0.1, 1.0, 400 if step < 2 else 200, 8, 4e5, 3e5, 3e5, 0, 2400, 10**8, 0.1))
    for number, value in enumerate(f1, 1):
        sink.emit(Eval(number * steps // len(f1), "val", {"f1": value, "loss": 1.0}, 0.1))
        sink.emit(Eval(number * steps // len(f1), "test", {"f1": 0.99, "loss": 0.5}, 0.1))
    sink.flush()
    return sink


def end(sink: ParquetSink, status: Status = Status.COMPLETED, reason: str = "", mean_active: float = 300.0, steps: int = 10) -> None:
    sink.emit(RunEnd(status, reason, steps, 65.0, 50.0, 130.0, 3000, 1e7, mean_active, mean_active / 400))
    sink.flush()


def beat(directory: Path, minute: float = 4, state: str = "running", **given: object) -> None:
    """What a driver on this machine says, whose process is there."""
    at = BEGAN + timedelta(minutes=minute)
    report = DriverReport(os.getpid(), this_host(), BEGAN.isoformat(), at.isoformat(), state, "", 5, [])
    write_report(directory, replace(report, **given))


def after(minutes: float) -> datetime:
    return BEGAN + timedelta(minutes=minutes)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    create_study(tmp_path / "small", SPEC, "name: small\n")
    return tmp_path / "small"


def test_a_study_of_costs_alone_shows_the_metric_of_its_scheduler(tmp_path: Path) -> None:
    costs = [Objective(metric="mean_active", direction="minimize")]
    create_study(tmp_path, SPEC.model_copy(update={"objectives": costs}), "name: small\n")
    assert read_status(tmp_path).metric == "val/f1"


def test_study_without_runs(study: Path) -> None:
    picture = read_status(study)
    assert (picture.total, picture.trials, picture.state, picture.detail) == (5, [], "unknown", "nothing is recorded yet")


def test_trials_are_told_with_all_their_seeds(study: Path) -> None:
    end(begin(study, 1, 0, minute=0, steps=10, f1=[0.9, 0.4]))
    end(begin(study, 1, 1, minute=1, steps=10, f1=[0.7, 0.6]))
    end(begin(study, 0, minute=2, steps=3), Status.DIVERGED, "the loss became nan\nat step 3", steps=3)
    end(begin(study, 2, minute=2, steps=10, f1=[0.3, 0.2]))
    beat(study)
    picture = read_status(study, after(4))
    assert (picture.state, picture.total, picture.elapsed_s) == ("running", 5, 240.0)
    whole, bad, half = picture.trials
    assert (whole.name, whole.state, whole.seeds_done, whole.seeds, whole.params) == ("t0001", "completed", 2, 2, {"freeze.threshold": 0.1})
    assert (whole.values, whole.elapsed_s) == (pytest.approx([0.5, 300.0]), 130.0)
    assert (whole.last, whole.best) == (pytest.approx(0.5), pytest.approx(0.8))  # means over the seeds, as the driver has them
    assert whole.active == [(0, 1.0), (2, 0.5), (9, 0.5)]
    assert (bad.state, bad.reason, bad.last, bad.values) == ("diverged", "the loss became nan at step 3", None, None)
    assert (half.state, half.seeds_done, half.values) == ("running", 1, None)  # its second seed is still to come
    assert [trial.name for trial in picture.front] == ["t0001"]
    assert (picture.done, picture.running, picture.queued) == (2, 1, 2)


def test_what_a_baseline_sets_is_told(tmp_path: Path) -> None:
    half = BaselineSpec(name="half", set={"freeze.floor": 0.5})
    create_study(tmp_path, SPEC.model_copy(update={"baselines": ["none", half]}), "name: small\n")
    for label in ("none", "half"):
        sink = ParquetSink(tmp_path, f"{label}-s0")
        groups = [GroupInfo("a", "a", "Linear", 300)]
        sink.emit(RunStart(f"{label}-s0", "small", None, 0, "baseline", label, {}, spec_as_json(SPEC.run), {}, groups, BEGAN))
        sink.flush()
    lines = {trial.name: trial for trial in read_status(tmp_path).trials}
    assert (lines["half"].params, lines["none"].params, lines["none"].is_baseline) == ({"freeze.floor": 0.5}, {}, True)


def test_a_running_trial_tells_how_far_it_is(study: Path) -> None:
    begin(study, 2, minute=2, steps=4, f1=[0.25])
    beat(study)
    [trial] = read_status(study, after(4)).trials
    assert (trial.state, trial.step, trial.steps, trial.last, trial.elapsed_s) == ("running", 4, 10, 0.25, 120.0)
    assert trial.active == [(0, 1.0), (2, 0.5), (3, 0.5)]


def test_when_the_driver_is_gone_what_ran_is_interrupted(study: Path) -> None:
    begin(study, 2, minute=2, steps=4, f1=[0.25])
    beat(study, host="node7")
    picture = read_status(study, after(60))
    assert picture.state == "gone"
    assert f"fat-ray resume {study} goes on" in picture.detail
    assert [trial.state for trial in picture.trials] == ["interrupted"]
    assert (picture.running, picture.queued, picture.elapsed_s) == (0, 4, 240.0)


def test_what_the_driver_knows_better_is_taken_from_it(study: Path) -> None:
    beat(study, 4, "stopped", detail="time budget used up", total=2, warnings=["W&B is away"])
    picture = read_status(study, after(60))
    assert (picture.state, picture.total, picture.warnings, picture.elapsed_s) == ("stopped", 2, ["W&B is away"], 240.0)


def test_without_a_driver_the_age_of_the_newest_record_is_told(study: Path) -> None:
    begin(study, 0, minute=0, steps=4, f1=[0.25])
    part = next((study / "records" / "evals" / "t0000-s0").iterdir())
    for each in (study / "records").glob("*/*/*"):
        os.utime(each, (after(0).timestamp(),) * 2)
    os.utime(part, (after(3).timestamp(),) * 2)
    picture = read_status(study, after(5))
    assert picture.state == "unknown"
    assert picture.detail.startswith("the newest record is 2 min 00 s old")
    assert picture.trials[0].state == "running"


def test_without_a_driver_a_study_whose_runs_have_all_ended_is_done(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"seeds": [0], "baselines": [], "search": {}})
    create_study(tmp_path, spec, "name: small\n")
    end(begin(tmp_path, 0, minute=0, steps=10, f1=[0.9]))
    picture = read_status(tmp_path)
    assert (picture.state, picture.elapsed_s) == ("done", 65.0)


def test_half_written_part_is_not_seen(study: Path) -> None:
    begin(study, 0, minute=0, steps=4)
    part = next((study / "records" / "steps" / "t0000-s0").iterdir())
    (part.parent / f".{part.name}.tmp").write_bytes(part.read_bytes()[:50])
    assert read_status(study).trials[0].step == 4


def test_directory_without_study(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no study\.json"):
        read_status(tmp_path)


def test_the_keys_of_the_json_document_are_stable(study: Path) -> None:
    begin(study, 0, minute=0, steps=4, f1=[float("nan"), 0.25])
    beat(study)
    document = json.loads(as_json(read_status(study, after(4)), study))
    assert list(document) == [
        *("format", "version", "study", "state", "detail", "metric", "objectives"),
        *("planned", "done", "running", "queued", "counts", "progress", "elapsed_s", "front", "best_compromise", "warnings"),
        *("time_left_s", "trials", "directory"),
    ]
    assert document["trials"] == [
        {
            "trial": "t0000",
            "setting": {"freeze.threshold": 0.0},
            "baseline": False,
            "state": "running",
            "reason": "",
            "seeds": 2,
            "seeds_done": 0,
            "step": 4,
            "steps": 10,
            "last": 0.25,
            "best": 0.25,
            "at_budget": None,
            "active_fraction": 0.5,
            "elapsed_s": 240.0,
        }
    ]


def test_it_is_shown_once_with_all_trials(study: Path) -> None:
    for number in range(3):
        begin(study, number, minute=number, steps=4, f1=[0.25])
    console = Console(file=io.StringIO(), width=100, height=10)
    show(study, console)
    assert isinstance(console.file, io.StringIO)
    assert [number for number in range(3) if f"t{number:04d}" in console.file.getvalue()] == [0, 1, 2]


def test_it_is_followed_until_it_is_over(study: Path) -> None:
    begin(study, 0, minute=0, steps=4, f1=[0.25])
    beat(study, (datetime.now(UTC) - BEGAN).total_seconds() / 60)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            beat(study, 5, "done")

    console = Console(file=io.StringIO(), width=100, height=30, force_terminal=True, color_system=None)
    follow(study, console, wait)
    assert isinstance(console.file, io.StringIO)
    assert waited == [2.0, 2.0]
    assert "small  running" in console.file.getvalue()
    assert "small  done" in console.file.getvalue().rpartition("small  running")[2]


def test_ctrl_c_ends_only_the_looking(study: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    beat(study, (datetime.now(UTC) - BEGAN).total_seconds() / 60)
    follow(study, Console(file=io.StringIO(), force_terminal=True), interrupt)


def test_following_needs_a_terminal(study: Path) -> None:
    with pytest.raises(InputError, match="--watch needs a terminal"):
        follow(study, Console(file=io.StringIO()))
