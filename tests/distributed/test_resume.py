"""A run that is killed at any moment and goes on from its checkpoints is the run that was never interrupted, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from fat_ray.engine import checkpoint
from fat_ray.engine.request import Request
from fat_ray.engine.vault import checkpoints
from fat_ray.events import Status
from fat_ray.fisher.reduce import world
from fat_ray.records.reader import read_table
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import RunSpec, merge
from fat_ray.train.local import run_local
from tests.support.distributed import run_distributed
from tests.support.interruption import Killed, num_resumptions, outcome, train_until
from tests.support.jobs import tiny_job

pytestmark = pytest.mark.timeout(300)

EVENTS = 27
"""As many as a run of the settings below emits, at most."""

VARIANTS: dict[str, dict[str, Any]] = {
    "corrected": {},
    "squared_gradient": {"fisher": {"estimator": "squared_gradient"}},
    "paper": {"preset": "paper", "train": {"optimizer": {"name": "sgd"}}},
    "released": {"preset": "released"},
    "fish_mask": {"freeze": {"policy": "fish_mask", "keep": 0.5}},
    "freezeout": {"freeze": {"policy": "freezeout", "first_freeze": 0.5}},
    "gradient_norm": {"freeze": {"policy": "gradient_norm"}},
    "gradual_unfreeze": {"freeze": {"policy": "gradual_unfreeze", "thaw_every": 2, "stages": 2}},
    "lora": {"freeze": {"policy": "lora", "head": ["8"]}, "train": {"optimizer": {"weight_decay": 0.1}}},
    "random_matched": {"freeze": {"policy": "random_matched"}, "train": {"optimizer": {"name": "sgd", "momentum": 0.0}}},
}
NOW_AND_THEN = ((0,), (1,), (5,), (9,), (10,), (14,), (20,), (26,), (7, 4), (13, 3, 9))
"""Events after which a run dies, one life after the other: before and after freeze events, evaluations and checkpoints."""
SELDOM = ((5,), (10,), (14,), (7, 4))
"""The same where a run takes longer: within a step, at a freeze event, between it and the next collection, twice."""


def job(directory: Path, variant: str = "corrected", *, workers: int = 1, **settings: Any) -> RunJob:
    """Collects at each step, decides at 2, 4 and 6, evaluates at 2, 4, 6 and 8, and saves at 3, 6 and 8."""
    base = tiny_job(directory, workers=workers, checkpoint=3, batch_norm=True, noise=True, **settings)
    method = {
        "fisher": {"every": 1, "groups": {"blocks": 2}},
        "drift": {"bins": 8},
        "freeze": {"threshold": 0.0, "every": 2, "warmup_steps": 2},
    }
    values = merge(merge(base.spec.model_dump(mode="json", include={"task", "train"}), method), VARIANTS[variant])
    follow = [(2, 1500), (4, 1000), (6, 500)] if variant == "random_matched" else None
    return base.model_copy(update={"spec": RunSpec.model_validate(values), "follow": follow})


def interrupted(directory: Path, variant: str, lifetimes: tuple[int, ...]) -> RunJob:
    """A run that dies after so many events, goes on, dies again, and in the end completes."""
    killed = job(directory, variant, workers=world()[1])
    for lifetime in lifetimes:
        train_until(killed, lifetime)
    end = train_until(killed)
    assert end is not None
    assert end.status is Status.COMPLETED
    return killed


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_at_any_event_equals_the_uninterrupted_one(tmp_path: Path, variant: str) -> None:
    whole = job(tmp_path / "whole", variant)
    train_until(whole)
    expected = outcome(whole)
    assert len(expected["steps"]) == 8
    assert expected["freezes"]
    every = tuple((lifetime,) for lifetime in range(EVENTS))
    for number, lifetimes in enumerate(every if variant == "corrected" else NOW_AND_THEN):
        assert outcome(interrupted(tmp_path / str(number), variant, lifetimes)) == expected, f"killed after {lifetimes} events"


def interrupt_often(directory: str, variant: str) -> list[tuple[int, ...]]:
    """The lifetimes after which a run was another one; on each of the ranks."""
    rank, size = world()
    whole = job(Path(directory, "whole"), variant, workers=size)
    train_until(whole)
    expected = outcome(whole) if rank == 0 else None
    unequal = []
    for number, lifetimes in enumerate(SELDOM):
        found = interrupted(Path(directory, str(number)), variant, lifetimes)
        if rank == 0 and outcome(found) != expected:
            unequal.append(lifetimes)
    return unequal


@pytest.mark.parametrize(("world_size", "variant"), [(2, "corrected"), (2, "released"), (4, "corrected")])
def test_several_ranks_killed_at_any_event_equal_the_uninterrupted_ones(tmp_path: Path, world_size: int, variant: str) -> None:
    assert run_distributed(interrupt_often, world_size, str(tmp_path), variant) == [[]] * world_size


def stop_often(directory: str) -> list[int]:
    """The steps after which a run that was stopped became another one; on each of the ranks."""
    rank, size = world()
    whole = job(Path(directory, "whole"), workers=size)
    train_until(whole)
    expected = outcome(whole) if rank == 0 else None
    unequal = []
    for step in range(7):
        stopped = job(Path(directory, str(step)), workers=size)
        end = train_until(stopped, requests=[None] * step + [Request.STOP])
        assert end is not None
        assert (end.status, end.steps) == (Status.STOPPED, step + 1)
        train_until(stopped, requests=[Request.SAVE])
        if rank == 0 and (outcome(stopped) != expected or num_resumptions(stopped.directory, stopped.run) != 1):
            unequal.append(step)
    return unequal


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_was_stopped_after_any_step_goes_on_as_if_it_had_not_been(tmp_path: Path, world_size: int) -> None:
    assert run_distributed(stop_often, world_size, str(tmp_path)) == [[]] * world_size


def test_a_run_saves_when_asked_and_where_no_checkpoints_are_wanted_it_does_not(tmp_path: Path) -> None:
    kept = job(tmp_path / "kept")
    train_until(kept, lifetime=17, requests=[None, None, None, Request.SAVE])
    assert [path.name for path in checkpoints(kept.directory, kept.run)] == ["step-00000004", "step-00000003"]
    unwanted = tiny_job(tmp_path / "unwanted", workers=1, checkpoint=0)
    train_until(unwanted, requests=[Request.SAVE, Request.STOP])
    assert checkpoints(unwanted.directory, unwanted.run) == []


@pytest.mark.parametrize("stage", ["begin", "write_rank", "write_shared", "seal", "prune"])
@pytest.mark.parametrize("after", [False, True])
def test_a_run_killed_while_it_saves_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, after: bool
) -> None:
    whole, killed = job(tmp_path / "whole"), job(tmp_path / "killed")
    train_until(whole)
    original, calls = getattr(checkpoint, stage), []

    def die(*args: Any) -> Any:
        calls.append(args)
        result = original(*args) if after or len(calls) == 1 else None
        if len(calls) == 2:
            raise Killed
        return result

    monkeypatch.setattr(checkpoint, stage, die)
    assert train_until(killed) is None
    monkeypatch.undo()
    train_until(killed)
    assert outcome(killed) == outcome(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_whose_processes_were_killed_goes_on(tmp_path: Path, workers: int) -> None:
    """By a real SIGKILL at a freeze event, first before there is a checkpoint, and once more in the life after."""
    whole = job(tmp_path / "whole", workers=workers)
    run_local(whole)
    trouble = {step: f"kill:{tmp_path / step}" for step in ("4", "2")}
    killed = job(tmp_path / "killed", workers=workers, trouble=trouble, trouble_rank=workers - 1)
    for _ in range(2):
        assert run_in_a_process(killed) != 0
    assert read_table(killed.directory, "resumptions", killed.run)["step"].to_pylist() == [0]
    assert run_in_a_process(killed) == 0
    assert read_table(killed.directory, "resumptions", killed.run)["step"].to_pylist() == [0, 3]
    expected, found = outcome(whole), outcome(killed)
    assert found.pop("runs") != expected.pop("runs")  # the trouble is a setting of the task
    assert found == expected


def run_in_a_process(job: RunJob) -> int:
    call = "from fat_ray.spec.job import RunJob; from fat_ray.train.local import run_local; import sys; "
    call += "run_local(RunJob.model_validate_json(sys.argv[1]))"
    text = job.model_copy(update={"resume": True}).model_dump_json()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", call, text], env=environment, check=False, stderr=subprocess.DEVNULL).returncode


def test_a_run_goes_on_with_fewer_workers_and_says_what_can_no_longer_be_equal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Released keeps element-wise averages, of which each rank has a share: all of them must be there again."""
    run_distributed(train_until, 2, job(tmp_path, "released", workers=2), 17)
    alone = job(tmp_path, "released", workers=1)
    end = train_until(alone)
    assert end is not None
    assert end.status is Status.COMPLETED
    (resumed,) = read_table(alone.directory, "resumptions", alone.run).to_pylist()
    assert resumed["step"] == 3
    assert resumed["note"].startswith("resumed at step 3 on 1 instead of 2 workers: ")
    assert resumed["note"] in caplog.text
    first = [row for row in read_table(alone.directory, "drift", alone.run).to_pylist() if row["update"] == 3]
    assert [row["distance"] is not None and row["distance"] > 0 for row in first] == [row["active"] for row in first]
    state = json.loads((checkpoints(alone.directory, alone.run)[0] / "state.json").read_text())
    assert state["world_size"] == 1


def test_a_run_goes_on_with_more_workers(tmp_path: Path) -> None:
    killed = job(tmp_path, "released", workers=1)
    train_until(killed, lifetime=17)
    grown = job(tmp_path, "released", workers=2)
    ends = run_distributed(train_until, 2, grown)
    assert [end.status for end in ends] == [Status.COMPLETED] * 2
    assert read_table(tmp_path, "resumptions", killed.run)["step"].to_pylist() == [3]
    assert read_table(tmp_path, "steps", killed.run)["step"].to_pylist() == list(range(8))
    shares = [set(safe_names(checkpoints(tmp_path, killed.run)[0] / f"rank-{rank}.safetensors")) for rank in range(2)]
    assert shares[0] & shares[1] == set()
    assert shares[0]
    assert shares[1]


def safe_names(path: Path) -> list[str]:
    with safe_open(path, "np") as file:
        return [name for name in file.keys() if name.startswith("average/")]  # noqa: SIM118 - no mapping
