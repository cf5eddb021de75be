"""A study whose driver dies at any write, again and again, is in the end the one that never did: to the bit, suggestions and decisions too.

Everything is real but Ray and the kill: journal, records, checkpoints and training in this process. With both: tests/ray/test_kill.py.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fat_ray.records.start import capture
from fat_ray.spec.study import StudySpec
from fat_ray.train import worker
from tests.support.interruption import Killed
from tests.support.mortal_driver import Writes, all_of, live, mortal
from tests.support.tiny_task import TINY_TASK

pytestmark = pytest.mark.timeout(300)

BASE: dict[str, Any] = {
    "name": "tiny",
    "task": {"name": TINY_TASK},
    "train": {"steps": 6, "global_batch": 8, "evaluate_every": 2},
    "fisher": {"every": 1, "groups": {"blocks": 2}},
    "drift": {"bins": 8},
    "freeze": {"threshold": 0.0, "every": 2, "warmup_steps": 2},
    "search": {
        "train.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        "freeze.every": {"type": "int", "low": 1, "high": 3},
    },
    "objectives": [{"metric": "val/loss", "direction": "minimize"}],
    "sampler": {"name": "tpe", "seed": 1, "startup_trials": 2},
    "budget": {"trials": 4},
    "wandb": {"mode": "disabled"},
}
STUDIES: dict[str, dict[str, Any]] = {
    "seeds, one objective, ASHA": {
        "seeds": [0, 1],
        "scheduler": {"name": "asha", "metric": "val/loss", "direction": "minimize", "grace_steps": 2},
    },
    "two objectives, median": {
        "seeds": [0, 1],
        "objectives": [{"metric": "val/f1", "direction": "maximize"}, {"metric": "mean_active", "direction": "minimize"}],
        "scheduler": {"name": "median", "metric": "val/f1", "grace_steps": 2},
    },
    "a sequence, baselines that follow": {
        "sampler": {"name": "qmc", "seed": 1},
        "baselines": [
            {"name": "control", "policy": "random_matched", "set": {"freeze.follow": "t0001-s0"}},
            "random_matched",
            {"name": "half", "set": {"freeze.floor": 0.5}},
        ],
    },
}


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Writes]:
    """All writes; what takes time and is of no matter here is left out."""
    environment = capture(world_size=1, device="cpu")
    monkeypatch.setattr("fat_ray.records.start.capture", lambda **_: environment)
    monkeypatch.setattr(worker.gc, "collect", lambda: 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug
    with mortal(monkeypatch) as counted:
        yield counted


def lives(seed: int) -> Iterator[tuple[int, bool]]:
    """Before which of its writes each driver dies, and whether it tears that one if it can."""
    draw = random.Random(seed)
    for _ in range(20):
        yield draw.randint(0, draw.choice([3, 12, 40])), draw.random() < 0.3


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_whose_driver_dies_at_any_write_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: Writes, name: str
) -> None:
    spec = StudySpec.model_validate({**BASE, **STUDIES[name]})
    ledger = live(spec, tmp_path / "whole", monkeypatch)
    whole = all_of(tmp_path / "whole")
    states = {state for _, state, *_ in whole["trials"]}
    assert (len(whole["trials"]), ledger.notes, bool(whole["baselines"])) == (4, [], True)
    assert states == ({"COMPLETE", "PRUNED"} if "ASHA" in name else {"COMPLETE"})
    for seed in range(2):
        directory, deaths = tmp_path / str(seed), 0
        for number, torn in lives(seed):
            writes.die_before(number, torn=torn)
            try:
                live(spec, directory, monkeypatch)
            except Killed:
                deaths += 1
        writes.die_before(None)
        live(spec, directory, monkeypatch)
        assert deaths > 10
        assert all_of(directory) == whole
        writes.die_before(None)
        live(spec, directory, monkeypatch)
        assert writes.kinds == ["replace"]  # the number of the driver; nothing was left to do
