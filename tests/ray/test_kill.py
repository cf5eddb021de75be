"""A study whose driver is killed at twenty random moments, with all of its Ray, is in the end the study that was never interrupted."""

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fat_ray.records.manifest import read_manifest
from fat_ray.records.reader import read_table, runs
from fat_ray.spec.study import StudySpec
from tests.support.commands import Commands, commands
from tests.support.mortal_driver import all_of, live
from tests.support.tiny_task import TINY_TASK
from tests.support.wandb_file import offline_runs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

KILLS = 20
STUDY: dict[str, Any] = {
    "name": "tiny",
    "task": {"name": TINY_TASK, "settings": {"slow_s": 0.0}},
    "train": {"steps": 12, "global_batch": 8, "evaluate_every": 3, "checkpoint": {"every": 2}},
    "fisher": {"every": 1, "groups": {"blocks": 2}},
    "drift": {"bins": 8},
    "freeze": {"threshold": 0.0, "every": 2, "warmup_steps": 2},
    "search": {"train.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
    "objectives": [{"metric": "val/loss", "direction": "minimize"}],
    "sampler": {"name": "tpe", "seed": 1, "startup_trials": 2},
    "budget": {"trials": 4, "concurrency": 1},
    "seeds": [0, 1],
    "executor": "warm",
}


def moments() -> Iterator[tuple[int, float]]:
    """What a driver lives to see: so many writes, or none, and so many seconds more."""
    draw = random.Random(5)
    for number in range(KILLS):
        yield (0, draw.uniform(0, 5)) if number % 4 == 0 else (draw.randint(1, 24), draw.uniform(0, 0.3))


def written(directory: Path) -> int:
    """How much of the study is on the disk: parts of records, and lines of the journal."""
    journal = directory / "optuna.journal"
    lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
    return lines + sum(1 for _ in (directory / "records").glob("*/*/part-*.parquet"))


def kill_at(driver: Commands, directory: Path, writes: int, delay_s: float) -> bool:
    """Kills the driver and its Ray when it has written that much, and as much time has gone; whether it still ran."""
    before = written(directory)
    while driver.runs() and written(directory) < before + writes:
        time.sleep(0.02)
    time.sleep(delay_s)
    driver.signal(signal.SIGKILL, group=True)
    return driver.wait() == -signal.SIGKILL


def test_a_study_killed_at_twenty_moments_is_the_one_that_was_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(StudySpec.model_validate(STUDY), tmp_path / "whole", monkeypatch)
    directory = tmp_path / "out" / "tiny"
    (tmp_path / "tiny.yaml").write_text(json.dumps(STUDY))
    launch = ("launch", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--set", "task.settings.slow_s=0.02", "--quiet")
    kills = 0
    with commands(tmp_path / "log.txt") as driver:
        for writes, delay_s in moments():
            driver.start(*(("resume", directory, "--quiet") if (directory / "study.json").exists() else launch))
            kills += kill_at(driver, directory, writes, delay_s)
        driver.start("resume", directory, "--quiet")
        assert driver.wait() == 0, driver.log.read_text()
        assert kills == KILLS, driver.log.read_text()
        assert "Traceback" not in driver.log.read_text()
    assert all_of(directory, but=["spec_json"]) == all_of(tmp_path / "whole", but=["spec_json"])
    mirrored = offline_runs(directory)
    assert sorted(mirrored) == runs(directory)
    for run, found in mirrored.items():
        assert found.run.run_id == f"tiny-{run}-{read_manifest(directory).launch}"
        assert found.exit_code == 0
        logged = [row["train/loss"] for row in found.history if "train/loss" in row]
        assert logged == read_table(directory, "steps", run)["loss"].to_pylist()
    assert sorted(path.name for path in (directory / "control").iterdir()) == ["beacon.json", "driver.json", "driver.lock"]
