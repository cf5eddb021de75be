"""What happens around a single run; that it trains is shown in tests/conformance/test_readme.py."""

import fcntl
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fat_ray.analysis.compare import compare
from fat_ray.analysis.render import as_json
from fat_ray.analysis.report import write_report
from fat_ray.analysis.status import read_status
from fat_ray.errors import DataError, InputError, OutputError, PolicyError, RecordError, ResourceError, RunFailedError
from fat_ray.events import RunEnd, Status
from fat_ray.records.manifest import read_manifest
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.records.reader import run_end, run_start
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import StudySpec
from fat_ray.study.single import resume_once, run_once
from fat_ray.train.local import run_local
from tests.support.small_studies import write_run

SPEC = StudySpec.model_validate_json(
    '{"name": "small", "seeds": [0, 1], "wandb": {"mode": "disabled"}, "train": {"steps": 4},'
    ' "search": {"freeze.threshold": {"type": "float", "low": -1, "high": 0}}}'
)
END = RunEnd(Status.COMPLETED, "", 4, 1.0, 1.0, 1.0, 4, 1.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[RunJob]:
    """Nothing is trained; the jobs that would have been."""
    trained: list[RunJob] = []

    def train(job: RunJob, report: Callable[[dict[str, Any]], None]) -> RunEnd:
        trained.append(job)
        report({"step": 4, "val/f1": 0.5, "test/f1": 0.4, "mean_active_fraction": 0.75})
        return END

    monkeypatch.setattr("fat_ray.train.local.run_local", train)
    monkeypatch.setattr("fat_ray.tasks.registry.check_task", lambda _: nn.Linear(4, 4))
    return trained


def test_trains_the_base_settings_and_says_how_it_goes(tmp_path: Path, jobs: list[RunJob], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_once(SPEC, text="name: small\n", directory=tmp_path / "one", seed=7, command=["run"]) is END
    (job,) = jobs
    assert (job.run, job.seed, job.role, job.trial, job.spec) == ("run-s7", 7, "single", None, SPEC.run)
    assert job.directory == str(tmp_path / "one")
    shown = capsys.readouterr()
    assert shown.out == ""
    begun, evaluated = shown.err.splitlines()
    assert begun == "run-s7: 4 steps, 1 worker(s), policy fisher_drift"
    assert re.fullmatch(r"step 4/4  val/f1 0\.5000  active 75%  \d+ s", evaluated)


def test_manifest_is_that_of_one_run(tmp_path: Path) -> None:
    run_once(SPEC, text="name: small\n", directory=tmp_path / "one", seed=7, quiet=True)
    kept = StudySpec.model_validate(read_manifest(tmp_path / "one").spec, strict=False)
    assert (kept.search, kept.baselines, kept.seeds, kept.budget.trials) == ({}, [], [7], 1)
    assert kept.run == SPEC.run


def test_quiet_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_once(SPEC, text="", directory=tmp_path / "one", seed=0, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_nothing_is_made_when_the_task_is_wrong(tmp_path: Path, jobs: list[RunJob], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise DataError("no images")

    monkeypatch.setattr("fat_ray.tasks.registry.check_task", refuse)
    with pytest.raises(DataError):
        run_once(SPEC, text="", directory=tmp_path / "one", seed=0)
    assert jobs == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_made_when_the_policy_is_wrong(tmp_path: Path, jobs: list[RunJob]) -> None:
    freeze = SPEC.freeze.model_copy(update={"policy": "head_only", "head": ["decoder"]})
    with pytest.raises(PolicyError, match=r"freeze\.head: 'decoder' is no module"):
        run_once(SPEC.model_copy(update={"freeze": freeze}), text="", directory=tmp_path / "one", seed=0)
    assert jobs == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_mirror_cannot_write(tmp_path: Path, jobs: list[RunJob], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: WandbMirror) -> None:
        raise OutputError("read-only")

    monkeypatch.setattr(WandbMirror, "check_writable", refuse)
    with pytest.raises(OutputError):
        run_once(SPEC, text="", directory=tmp_path / "one", seed=0)
    assert jobs == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_machine_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> RunEnd:
        raise ResourceError("no GPU")

    monkeypatch.setattr("fat_ray.train.local.run_local", refuse)
    with pytest.raises(ResourceError):
        run_once(SPEC, text="", directory=tmp_path / "one", seed=0, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_used_directory_is_refused_and_kept(tmp_path: Path) -> None:
    run_once(SPEC, text="first\n", directory=tmp_path / "one", seed=0, quiet=True)
    with pytest.raises(OutputError, match="already holds a study"):
        run_once(SPEC, text="second\n", directory=tmp_path / "one", seed=0, quiet=True)
    assert (tmp_path / "one" / "study.yaml").read_text() == "first\n"


def test_random_matched_has_nothing_to_follow(tmp_path: Path) -> None:
    spec = StudySpec.model_validate_json('{"name": "small", "freeze": {"policy": "random_matched"}}')
    with pytest.raises(InputError, match="random_matched"):
        run_once(spec, text="", directory=tmp_path / "one", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_mirror_is_finished_however_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = []

    def fail(*_: object) -> RunEnd:
        raise RunFailedError("gone")

    monkeypatch.setattr("fat_ray.train.local.run_local", fail)
    monkeypatch.setattr(WandbMirror, "finish", lambda _, run: finished.append(run))
    with pytest.raises(RunFailedError):
        run_once(SPEC, text="", directory=tmp_path / "one", seed=0, quiet=True)
    assert finished == ["run-s0"]


@pytest.mark.timeout(30)
@pytest.mark.cpu_limit(10)  # draws a report
def test_a_run_that_breaks_at_set_up_is_recorded_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise ValueError("the weights are gone")

    monkeypatch.setattr("fat_ray.train.local.run_local", run_local)
    monkeypatch.setattr("fat_ray.train.worker.build_task", refuse)
    with pytest.raises(RunFailedError, match="the weights are gone"):
        run_once(SPEC, text="", directory=tmp_path / "one", seed=0, quiet=True)
    end, start = run_end(tmp_path / "one", "run-s0"), run_start(tmp_path / "one", "run-s0")
    assert end is not None
    assert (end.status, end.reason, end.steps) == (Status.FAILED, "ValueError: the weights are gone", 0)
    assert (start.groups, start.role, start.environment["world_size"], start.environment["device"]) == ([], "single", 1, "cpu")
    [shown] = read_status(tmp_path / "one").trials
    assert (shown.name, shown.state, shown.reason) == ("run-s0", "failed", "ValueError: the weights are gone")
    assert '"ValueError: the weights are gone"' in as_json(compare([tmp_path / "one"]))
    assert "the weights are gone" in write_report(tmp_path / "one").read_text()


def test_a_failure_that_the_run_recorded_itself_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: RunJob, _: object) -> RunEnd:
        write_run(job, Status.FAILED, reason="KeyError: 'x'")
        raise RunFailedError("worker 0: KeyError: 'x'")

    monkeypatch.setattr("fat_ray.train.local.run_local", fail)
    with pytest.raises(RunFailedError):
        run_once(SPEC, text="", directory=tmp_path / "one", seed=0, quiet=True)
    end = run_end(tmp_path / "one", "run-s0")
    assert end is not None
    assert (end.reason, end.steps) == ("KeyError: 'x'", 8)


@pytest.fixture
def begun(tmp_path: Path, jobs: list[RunJob]) -> Path:
    """The directory of a run of which nothing is recorded, as if it had been killed at once."""
    run_once(SPEC, text="", directory=tmp_path / "one", seed=7, quiet=True)
    jobs.clear()
    return tmp_path / "one"


def test_a_run_without_an_end_is_resumed_as_the_same_job(begun: Path, jobs: list[RunJob]) -> None:
    assert resume_once(begun, quiet=True) is END
    (job,) = jobs
    assert (job.run, job.seed, job.spec, job.resume) == ("run-s7", 7, SPEC.run, True)


def test_a_run_is_resumed_with_other_workers(begun: Path, jobs: list[RunJob]) -> None:
    resume_once(begun, workers=4, quiet=True)
    assert jobs[0].spec.train.workers == 4
    with pytest.raises(InputError, match="must be divisible by workers = 3"):
        resume_once(begun, workers=3, quiet=True)


@pytest.mark.parametrize(
    ("status", "goes_on"),
    [(Status.STOPPED, True), (Status.FAILED, True), (Status.COMPLETED, False), (Status.DIVERGED, False), (Status.PRUNED, False)],
)
def test_what_ended_for_good_is_left_alone(begun: Path, jobs: list[RunJob], status: Status, goes_on: bool) -> None:
    job = RunJob(study="small", run="run-s7", trial=None, seed=7, role="single", spec=SPEC.run, directory=str(begun))
    write_run(job, status)
    assert (resume_once(begun, quiet=True) is not None) is goes_on
    assert bool(jobs) is goes_on


def test_a_directory_is_worked_in_by_one_process_at_a_time(begun: Path, jobs: list[RunJob]) -> None:
    with (begun / "control" / "driver.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is at work"):
            resume_once(begun, quiet=True)
    assert jobs == []
    resume_once(begun, quiet=True)


def test_a_manifest_of_another_version_is_named(begun: Path) -> None:
    manifest = json.loads((begun / "study.json").read_text())
    manifest["spec"]["train"]["stepz"] = 1
    (begun / "study.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match=r"no study of this version: train\.stepz"):
        resume_once(begun)
