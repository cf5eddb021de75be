"""What happens around a study; that it runs is shown in tests/ray/test_study.py."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fat_ray
from fat_ray.errors import OutputError
from fat_ray.events import Status
from fat_ray.records.manifest import create_study
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.spec.job import RunJob
from fat_ray.study.journal import Journal
from fat_ray.study.launch import StudyOutcome, launch, resume
from fat_ray.study.tune import Course
from fat_ray.train.lease import Driver, sole_driver, write_driver
from tests.support.small_studies import small_study, write_run


@contextmanager
def one_node(*_: object) -> Iterator[list[dict[str, float]]]:
    yield [{"CPU": 8.0}]


@pytest.mark.cpu_limit(10)  # imports Ray Tune
def test_the_mirror_that_was_checked_is_the_one_that_mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[WandbMirror] = []
    checked: list[WandbMirror] = []
    used: list[WandbMirror] = []
    make = WandbMirror.__init__

    def count(mirror: WandbMirror, *args: Any) -> None:
        made.append(mirror)
        make(mirror, *args)

    def check(mirror: WandbMirror) -> None:
        checked.append(mirror)

    monkeypatch.setattr(WandbMirror, "__init__", count)
    monkeypatch.setattr(WandbMirror, "check_writable", check)
    monkeypatch.setattr("fat_ray.tasks.registry.check_task", lambda _: nn.Linear(4, 4))
    monkeypatch.setattr("fat_ray.study.launch.prepare", lambda _: None)
    monkeypatch.setattr("fat_ray.study.cluster.connect", one_node)
    monkeypatch.setattr("fat_ray.study.tune.run_trials", lambda *args: used.append(args[-1]))
    launch(small_study(), text="", directory=tmp_path / "study", quiet=True)
    assert len(made) == 1
    assert made == checked == used


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a study whose driver was killed before its first trial."""
    monkeypatch.setattr("fat_ray.tasks.registry.check_task", lambda _: nn.Linear(4, 4))
    monkeypatch.setattr("fat_ray.study.launch.prepare", lambda _: None)
    create_study(tmp_path / "study", SPEC, "")
    (tmp_path / "study" / "control" / "t0000-s0.1").mkdir(parents=True)
    return tmp_path / "study"


SPEC = small_study(baselines=["none"], budget={"trials": 2, "hours": 1.0}, wandb={"mode": "disabled"})


def conducted(directory: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[Status]) -> tuple[StudyOutcome | None, list[float]]:
    """Resumes; instead of Ray, runs end with these statuses, and then the driver is gone. Also how long the study had been worked on."""
    worked: list[float] = []

    def run_trials(course: Course, *_: object) -> None:
        worked.append(time.monotonic() - course.ledger.started_s)
        for number, status in enumerate(statuses):
            config = course.search.suggest(f"id{number}")
            assert isinstance(config, dict)
            write_run(RunJob.model_validate_json(config["jobs"][0]), status)
            course.search.on_trial_complete(f"id{number}", {})

    monkeypatch.setattr("fat_ray.study.cluster.connect", one_node)
    monkeypatch.setattr("fat_ray.study.tune.run_trials", run_trials)
    return resume(directory, quiet=True), worked


@pytest.mark.cpu_limit(10)
def test_a_study_goes_on_until_it_is_complete(launched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = conducted(launched, monkeypatch, [Status.COMPLETED, Status.COMPLETED])
    assert first is not None
    assert [run.run for run in first.runs] == ["none-s0", "t0000-s0"]
    assert not (launched / "control" / "t0000-s0.1").exists()
    second, _ = conducted(launched, monkeypatch, [Status.DIVERGED])
    assert second is not None
    assert [(run.run, run.status) for run in second.runs] == [
        ("none-s0", Status.COMPLETED),
        ("t0000-s0", Status.COMPLETED),
        ("t0001-s0", Status.DIVERGED),
    ]
    before = (launched / "optuna.journal").read_bytes()
    monkeypatch.setattr("fat_ray.study.cluster.connect", lambda *_: pytest.fail("nothing was left to do"))
    assert resume(launched, quiet=True) is None
    assert (launched / "optuna.journal").read_bytes() == before
    assert fat_ray.Study.from_directory(launched).resume(quiet=True) is None
    assert json.loads((launched / "control" / "beacon.json").read_text())["state"] == "done"  # whatever a killed driver said last


@pytest.mark.cpu_limit(10)
def test_the_hours_that_were_worked_count(launched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_driver(launched, Driver(1, 3000.0))
    outcome, (worked_s,) = conducted(launched, monkeypatch, [Status.COMPLETED])
    assert outcome is not None
    assert 3000 <= worked_s < 3060
    write_driver(launched, Driver(2, 3600.0))
    assert resume(launched, quiet=True) is None  # out of time; Ray is not started


@pytest.mark.cpu_limit(10)
def test_what_was_left_when_a_budget_is_used_up_is_concluded_without_ray(launched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conducted(launched, monkeypatch, [Status.COMPLETED, Status.STOPPED])
    journal = Journal(SPEC, launched)
    number, _ = journal.ask() or (None, None)
    assert number == 1
    write_driver(launched, Driver(1, 3600.0))
    assert resume(launched, quiet=True) is None
    assert [trial.state.name for trial in Journal(SPEC, launched).trials] == ["FAIL", "FAIL"]
    assert resume(launched, quiet=True) is None


@pytest.mark.cpu_limit(10)
def test_a_study_is_driven_by_one_process_at_a_time(launched: Path) -> None:
    with sole_driver(launched), pytest.raises(OutputError, match="another process is at work"):
        resume(launched, quiet=True)
