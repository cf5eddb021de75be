"""The Slurm script with a Slurm that only pretends: what it starts, that it passes on the signal, and goes on when it is queued again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm" / "study.sbatch"
FAKES = {
    "scontrol": 'echo "$*" >> "$CALLS/scontrol"; if [[ $1 == show ]]; then printf "node1\\nnode2\\n"; fi',
    # As on the first node: what stands before -- is `ray symmetric-run` and its options, what stands behind is run.
    "srun": 'echo "$*" >> "$CALLS/srun"; while [[ $1 != -- ]]; do shift; done; shift; exec "$@"',
    "fat-ray": """echo "$RAY_ADDRESS $*" >> "$CALLS/fat-ray"; cp "$RAY_AUTH_TOKEN_PATH" "$CALLS/token"
if [[ -e $CALLS/wait ]]; then trap 'exit 143' TERM; touch "$CALLS/waits"; while :; do sleep 0.05; done; fi""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job, in which these programs are found first."""
    tools = tmp_path / "home" / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, body in FAKES.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "home" / "cluster").symlink_to(ROOT / "cluster")
    (tmp_path / "study.yaml").write_text('name: "mine"  # a study\n')
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"}
    return {**os.environ, **job, "FAT_RAY_HOME": str(tmp_path / "home"), "SLURM_SUBMIT_DIR": str(tmp_path), "CALLS": str(tmp_path)}


def start(slurm: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=slurm, text=True, **pipes)


def calls(slurm: dict[str, str], name: str) -> str:
    path = Path(slurm["CALLS"], name)
    return path.read_text() if path.exists() else ""


def test_it_starts_ray_on_all_nodes_and_the_study_on_the_first(slurm: dict[str, str], tmp_path: Path) -> None:
    job = start(slurm, str(tmp_path / "study.yaml"), str(tmp_path / "out"), "--trials", "4")
    assert job.wait(20) == 0, job.communicate()
    command = calls(slurm, "srun")
    assert "ray symmetric-run --address node1:24711 --min-nodes 2 --num-cpus=8 --num-gpus=0 --include-dashboard=false --" in command
    assert calls(slurm, "fat-ray") == f"node1:24711 launch {tmp_path}/study.yaml --out {tmp_path}/out --trials 4\n"
    assert len(calls(slurm, "token")) == 64
    assert calls(slurm, "token") not in command
    assert list((tmp_path / "out").iterdir()) == []  # the token is gone
    assert "requeue" not in calls(slurm, "scontrol")


def test_near_the_end_it_lets_the_study_save_and_queues_the_job_again(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    job = start(slurm, str(tmp_path / "study.yaml"), str(tmp_path / "out"))
    deadline_s = time.monotonic() + 20
    while not (tmp_path / "waits").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 143, job.communicate()
    assert "requeue 4711" in calls(slurm, "scontrol")
    (tmp_path / "wait").unlink()
    (tmp_path / "out" / "mine").mkdir()
    (tmp_path / "out" / "mine" / "study.json").touch()
    assert start(slurm, str(tmp_path / "study.yaml"), str(tmp_path / "out")).wait(20) == 0
    assert calls(slurm, "fat-ray").splitlines()[-1] == f"node1:24711 resume {tmp_path}/out/mine"


@pytest.mark.parametrize(
    ("arguments", "said"), [((), "usage: sbatch study.sbatch STUDY.yaml OUT"), (("nameless.yaml", "out"), "has no line such as")]
)
def test_what_is_missing_is_said(slurm: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "nameless.yaml").write_text("train: {}\n")
    job = start(slurm, *(str(tmp_path / name) for name in arguments))
    _, stderr = job.communicate(timeout=20)
    assert (job.returncode, said in stderr) == (2, True), stderr
