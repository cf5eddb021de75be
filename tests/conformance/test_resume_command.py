"""`fat-ray run`, killed; `fat-ray resume`; `fat-ray export`: as a user does it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fat_ray.engine.vault import checkpoints, step_of
from fat_ray.events import Status
from fat_ray.records.reader import read_table, run_end
from tests.support.tiny_task import TINY_TASK, make_task

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]

STUDY = """
name: tiny
task: {{name: "{task}", settings: {{dropout: 0.1, trouble: {trouble}}}}}
train: {{steps: 8, global_batch: 8, evaluate_every: 2}}
fisher: {{every: 1, groups: {{blocks: 2}}}}
freeze: {{threshold: 0.0, every: 2, warmup_steps: 2}}
wandb: {{mode: offline}}
"""


def fat_ray(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fat_ray", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_killed_run_is_resumed_and_exported(tmp_path: Path) -> None:
    study, directory, weights = tmp_path / "tiny.yaml", tmp_path / "out" / "tiny-run-s0", tmp_path / "model.safetensors"
    study.write_text(STUDY.format(task=TINY_TASK, trouble=f'{{"5": "kill:{tmp_path / "killed"}"}}'))
    assert fat_ray("run", study, "--out", tmp_path / "out").returncode == -9
    assert run_end(directory, "run-s0") is None
    half = fat_ray("export", directory, "--out", tmp_path / "half.safetensors")
    assert (half.returncode, "note: run-s0 is at step 4 of 8" in half.stderr) == (0, True)

    resumed = fat_ray("resume", directory)
    assert resumed.returncode == 0, resumed.stderr
    assert read_table(directory, "steps", "run-s0")["step"].to_pylist() == list(range(8))
    assert read_table(directory, "resumptions", "run-s0")["step"].to_pylist() == [4]
    assert len(list(directory.glob("wandb/**/offline-run-*/"))) == 1

    again = fat_ray("resume", directory)
    assert (again.returncode, again.stdout) == (0, "")
    assert "has ended already" in again.stderr

    exported = fat_ray("export", directory, "--out", weights)
    assert (exported.returncode, exported.stdout.strip()) == (0, str(weights))
    make_task().build_model().load_state_dict(load_file(weights))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_saves_on_usr1_stops_on_term_and_goes_on(tmp_path: Path, workers: int) -> None:
    """Signals to the whole group, as a terminal or a batch system sends them."""
    study, directory = tmp_path / "tiny.yaml", tmp_path / "out" / "tiny-run-s0"
    study.write_text(STUDY.format(task=TINY_TASK, trouble=f'{{"5": "file:{tmp_path / "training"}"}}'))
    settings = {"train.steps": 120, "train.checkpoint.every": 1000, "task.settings.slow_s": 0.05, "freeze.policy": "none"}
    options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "fat_ray", "run", study, "--out", tmp_path / "out", "--workers", workers, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT)
    wait_until((tmp_path / "training").exists, process)
    os.killpg(process.pid, signal.SIGUSR1)
    wait_until(lambda: bool(checkpoints(directory, "run-s0")), process)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 143
    assert said.endswith(f"fat-ray: stopped; go on with: fat-ray resume {directory}\n")
    end = run_end(directory, "run-s0")
    assert end is not None
    assert (end.status, step_of(checkpoints(directory, "run-s0")[0])) == (Status.STOPPED, end.steps)
    assert fat_ray("resume", directory, "--quiet").returncode == 0
    assert read_table(directory, "resumptions", "run-s0")["step"].to_pylist() == [end.steps]
    assert read_table(directory, "steps", "run-s0")["step"].to_pylist() == list(range(120))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """The test's time limit ends a wait that is in vain."""
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
