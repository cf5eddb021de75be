"""`fat-ray run`, killed; `fat-ray resume`; `fat-ray export`: as a user does it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

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
