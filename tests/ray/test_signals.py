"""Signals to a real study with a Ray of its own: it saves, stops and goes on, and is in the end the study that was never interrupted."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fat_ray.engine.vault import checkpoints, step_of
from fat_ray.events import Status
from fat_ray.records.manifest import read_manifest
from fat_ray.records.reader import parts, read_table, run_end, runs
from fat_ray.spec.study import StudySpec
from tests.support.commands import commands
from tests.support.mortal_driver import all_of, live
from tests.support.tiny_task import TINY_TASK
from tests.support.wandb_file import offline_runs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STUDY: dict[str, Any] = {
    "name": "tiny",
    "task": {"name": TINY_TASK, "settings": {"slow_s": 0.0}},
    "train": {"steps": 60, "global_batch": 8, "evaluate_every": 10, "checkpoint": {"every": 1000}},
    "freeze": {"policy": "linear_schedule", "every": 10, "warmup_steps": 10},
    "search": {"train.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
    "sampler": {"name": "random", "seed": 1},
    "budget": {"trials": 2, "concurrency": 1},
    "baselines": [],
    "executor": "warm",
}
RUN = "t0000-s0"


def test_a_study_saves_stops_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR1, then SIGTERM to the driver's whole group; then Ctrl-C, and another one at once."""
    spec, directory = StudySpec.model_validate(STUDY), tmp_path / "out" / "tiny"
    (tmp_path / "tiny.yaml").write_text(json.dumps(STUDY))
    live(spec, tmp_path / "whole", monkeypatch)
    with commands(tmp_path / "log.txt") as driver:
        slowly = ["--set", "task.settings.slow_s=0.1"]  # so that there is time for signals
        driver.start("launch", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--quiet", *slowly)
        driver.until(lambda: bool(parts(directory, "evals", RUN)))
        assert checkpoints(directory, RUN) == []
        driver.signal(signal.SIGUSR1)
        driver.until(lambda: bool(checkpoints(directory, RUN)))
        driver.signal(signal.SIGTERM, group=True)
        assert driver.wait() == 143
        end = run_end(directory, RUN)
        assert end is not None
        assert (end.status, end.reason) == (Status.STOPPED, f"stopped on request after {end.steps} of 60 steps")
        assert step_of(checkpoints(directory, RUN)[0]) == end.steps
        assert [state for _, state, *_ in all_of(directory)["trials"]] == ["RUNNING"]
        assert offline_runs(directory)[RUN].exit_code == 0
        assert f"fat-ray: stopped on request; go on with: fat-ray resume {directory}\n" in driver.log.read_text()

        driver.start("resume", directory, "--quiet")
        driver.until(lambda: bool(parts(directory, "resumptions", RUN)))
        driver.signal(signal.SIGINT)
        time.sleep(0.05)
        driver.signal(signal.SIGINT)
        assert driver.wait() == 130

        driver.start("resume", directory, "--quiet")
        assert driver.wait() == 0, driver.log.read_text()
        printed = len(driver.log.read_text())
        driver.start("resume", directory)
        assert driver.wait() == 0
        assert driver.log.read_text()[printed:] == f"the study in {directory} is complete; there is nothing to do\n"
    assert all_of(directory, but=["spec_json"]) == all_of(tmp_path / "whole", but=["spec_json"])
    assert json.loads((directory / "control" / "driver.json").read_text())["number"] == 4
    mirrored = offline_runs(directory)
    assert sorted(mirrored) == runs(directory)
    for run, found in mirrored.items():
        assert found.run.run_id == f"tiny-{run}-{read_manifest(directory).launch}"
        logged = [row["train/loss"] for row in found.history if "train/loss" in row]
        assert logged == read_table(directory, "steps", run)["loss"].to_pylist()
