"""The quickstart across three hosts with their own networks, names and Ray nodes, which ask for a token."""

import json
import sys
from pathlib import Path

import pytest

from fat_ray.records.reader import runs
from tests.support.hosts import hosts, missing
from tests.support.ray_session import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SMALL = {
    "budget.trials": 1,
    "train.steps": 8,
    "train.evaluate_every": 4,
    "task.image_size": 64,
    "freeze.warmup_steps": 2,
    "freeze.every": 4,
    "search": {"freeze.threshold": {"type": "float", "low": -0.8, "high": 0.4}},
    "scheduler.name": "none",
}
"""What makes it short."""


def test_the_quickstart_trains_across_hosts(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    options = [part for key, value in SMALL.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    with hosts() as made:
        for host in made.all:
            host.start_ray()
        command = [sys.executable, "-m", "fat_ray", "launch", ROOT / "studies/quickstart.yaml", "--address", made.address]
        driver = made.all[0].popen([*command, "--out", tmp_path, *options], tmp_path / "log")
        seen = set()
        while driver.poll() is None:
            seen |= {host.name for host in made.all if host.processes("ray::RayTrainWorker")}
    assert driver.returncode == 0, (tmp_path / "log").read_text()
    assert len(seen) > 1
    assert len(runs(tmp_path / "quickstart")) == 3
