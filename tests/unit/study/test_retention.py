"""Whose checkpoints stay when trials have ended."""

from pathlib import Path
from typing import Any

import pytest

from fat_ray.engine.vault import begin, checkpoint_path, checkpoints, runs_with_checkpoints, seal, temporary_path
from fat_ray.events import Status
from fat_ray.study.callbacks import Keeper
from fat_ray.study.ledger import Close, Trial
from fat_ray.study.retention import prune_checkpoints, slim_checkpoints
from tests.support.small_studies import small_study, write_run
from tests.unit.study.test_schedule import TuneTrial
from tests.unit.study.test_search import Driver

pytestmark = [pytest.mark.cpu_limit(10), pytest.mark.timeout(30)]  # imports Ray Tune


def save(directory: Path, run: str, step: int = 8) -> Path:
    """A whole checkpoint."""
    path = checkpoint_path(directory, run, step)
    begin(path)
    (temporary_path(path) / "model.safetensors").write_bytes(b"weights")
    seal(path, run)
    return path


class Study:
    """A study whose trials end as they are told to."""

    def __init__(self, directory: Path, **sections: Any) -> None:
        self.directory = directory
        self.driver = Driver(small_study(budget={"trials": 9}, **{"baselines": [], **sections}), directory, concurrency=9)
        self.keeper = Keeper(directory, self.driver.spec, self.driver.ledger)
        self.ids: dict[str, str] = {}

    def start(self) -> Trial:
        trial = self.driver.start()
        self.ids[trial.name] = self.driver.id
        for job in trial.jobs:
            save(self.directory, job.run, 4)
            save(self.directory, job.run, 8)
        return trial

    def end(self, trial: Trial, status: Status = Status.COMPLETED, f1: float = 0.5, mean_active: float = 50.0) -> None:
        for job in trial.jobs:
            write_run(job, status, final={"f1": f1, "loss": 1.0}, mean_active=mean_active)
        trial.asked_to_stop = status if status in (Status.PRUNED, Status.STOPPED) else None
        self.driver.search.on_trial_complete(self.ids[trial.name], {})
        self.keeper.on_trial_complete(0, [], TuneTrial(self.ids[trial.name]))

    @property
    def kept(self) -> list[str]:
        return runs_with_checkpoints(self.directory)


def test_only_trials_that_run_and_the_front_keep_theirs(tmp_path: Path) -> None:
    study = Study(tmp_path)
    good, small, beaten, running = (study.start() for _ in range(4))
    study.end(good, f1=0.9, mean_active=80.0)
    study.end(small, f1=0.5, mean_active=10.0)
    assert study.kept == ["t0000-s0", "t0001-s0", "t0002-s0", "t0003-s0"]
    study.end(beaten, f1=0.8, mean_active=90.0)
    assert study.kept == ["t0000-s0", "t0001-s0", "t0003-s0"]
    study.end(running, f1=0.95, mean_active=5.0)  # beats everybody
    assert study.kept == ["t0003-s0"]
    assert len(checkpoints(tmp_path, "t0003-s0")) == 2


@pytest.mark.parametrize(
    ("status", "close", "stays"),
    [
        ("pruned", None, False),
        ("diverged", None, False),
        ("failed", None, False),
        ("stopped", Close.OUT_OF_TIME, False),
        ("stopped", Close.INTERRUPTED, True),
        ("stopped", Close.OUT_OF_DISK, True),
    ],
)
def test_of_trials_without_a_result_those_stay_that_go_on(tmp_path: Path, status: str, close: Close | None, stays: bool) -> None:
    study = Study(tmp_path)
    trial = study.start()
    study.driver.ledger.close = close
    study.end(trial, Status(status))
    assert study.kept == (["t0000-s0"] if stays else [])


def test_a_trial_keeps_those_of_all_its_seeds_or_none(tmp_path: Path) -> None:
    study = Study(tmp_path, seeds=[0, 1])
    good, beaten = study.start(), study.start()
    write_run(good.jobs[0], final={"f1": 0.9, "loss": 1.0})
    study.keeper.on_trial_complete(0, [], TuneTrial(study.ids["t0000"]))  # another one ended; this one trains its second seed
    assert study.kept == ["t0000-s0", "t0000-s1", "t0001-s0", "t0001-s1"]
    write_run(good.jobs[1], final={"f1": 0.9, "loss": 1.0})
    study.driver.search.on_trial_complete(study.ids["t0000"], {})
    study.end(beaten, f1=0.1, mean_active=90.0)
    assert study.kept == ["t0000-s0", "t0000-s1"]


def test_baselines_are_kept_like_any_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, baselines=["none"])
    none, trial = study.start(), study.start()
    study.end(none, f1=0.9, mean_active=100.0)
    assert study.kept == ["none-s0", "t0000-s0"]
    study.end(trial, f1=0.95, mean_active=20.0)
    assert study.kept == ["t0000-s0"]


def test_retain_all_keeps_everything(tmp_path: Path) -> None:
    study = Study(tmp_path, train={"steps": 8, "evaluate_every": 2, "checkpoint": {"retain": "all"}})
    study.end(study.start(), Status.PRUNED)
    assert study.kept == ["t0000-s0"]


def test_what_the_driver_does_not_know_and_what_is_half_removed(tmp_path: Path) -> None:
    study = Study(tmp_path)
    save(tmp_path, "t0042-s0")
    (tmp_path / "checkpoints" / ".t0000-s0.gone.tmp" / "step-00000004").mkdir(parents=True)  # left by a driver that was killed
    study.end(study.start(), Status.PRUNED)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["t0042-s0"]


def test_for_want_of_space_the_older_ones_go_unless_the_newest_is_damaged(tmp_path: Path) -> None:
    study = Study(tmp_path)
    good, hurt, running = study.start(), study.start(), study.start()
    study.end(good, f1=0.9, mean_active=50.0)
    study.end(hurt, f1=0.5, mean_active=10.0)
    (checkpoint_path(tmp_path, "t0001-s0", 8) / "model.safetensors").write_bytes(b"?")
    slim_checkpoints(tmp_path, study.driver.spec, study.driver.ledger)
    assert [path.name for path in checkpoints(tmp_path, "t0000-s0")] == ["step-00000008"]
    assert len(checkpoints(tmp_path, "t0001-s0")) == 2
    assert len(checkpoints(tmp_path, running.jobs[0].run)) == 2


def test_what_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    study = Study(tmp_path)
    monkeypatch.setattr("fat_ray.study.retention.forget", refuse)
    study.end(study.start(), Status.PRUNED)
    assert "the checkpoints of t0000-s0 could not be removed: Permission denied" in caplog.text
    assert prune_checkpoints(tmp_path, study.driver.spec, study.driver.ledger) == ["t0000-s0"]
