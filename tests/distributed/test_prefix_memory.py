"""A run that remembers what its frozen prefix returns is, to the bit, the run that computes it: on one rank and two, interrupted or not."""

import json
from pathlib import Path
from typing import Any

import pytest

from fat_ray.fisher.reduce import world
from fat_ray.records.reader import read_table
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import RunSpec, merge
from tests.support.distributed import run_distributed
from tests.support.interruption import outcome, train_until
from tests.support.jobs import tiny_job

STEPS = 32
"""Eight times through the examples: on two ranks, either has seen nearly all of them after half the time."""
COSTS = ("flops", "flops_forward")


def job(directory: Path, remembered: int, policy: dict[str, Any]) -> RunJob:
    """Saves every ninth step, so that it is resumed in the midst of an epoch."""
    base = tiny_job(directory, workers=world()[1], steps=STEPS, evaluate_every=8, checkpoint=9, batch_norm=True)
    freeze = {"frozen_statistics": "hold", "cache_prefix_bytes": remembered, **policy}
    values = base.spec.model_dump(mode="json")
    return base.model_copy(update={"spec": RunSpec.model_validate(merge(values, {"freeze": freeze}))})


POLICIES: dict[str, dict[str, Any]] = {
    "from the front": {"policy": "linear_schedule", "every": 4, "warmup_steps": 2, "until": 0.3},
    "thaws": {"policy": "gradual_unfreeze", "thaw_every": 12, "stages": 2},
}


def result(job: RunJob) -> dict[str, Any]:
    """What the run has found, but for what it has cost and what it says about itself."""
    found = outcome(job)
    steps = [{name: value for name, value in row.items() if name not in COSTS} for row in found["steps"]]
    ends = [{name: value for name, value in row.items() if name not in COSTS} for row in found["ends"]]
    return {**found, "steps": steps, "ends": ends, "runs": None, "notices": None}


def spared(job: RunJob) -> list[float]:
    """By step, the part of the forward that was not computed."""
    forward = read_table(job.directory, "steps", job.run)["flops_forward"].to_pylist()
    return [1 - flops / max(forward) for flops in forward]


def three_runs(directory: str, policy: str) -> dict[str, Any]:
    """One that computes, one that remembers, and one that remembers and is killed twice; on each of the ranks."""
    plain, remembering, killed = (job(Path(directory, str(n)), size, POLICIES[policy]) for n, size in enumerate((0, 10**6, 10**6)))
    train_until(plain)
    train_until(remembering)
    for lifetime in (26, 12):
        assert train_until(killed, lifetime) is None
    train_until(killed)
    if world()[0]:
        return {}
    expected = result(plain)
    notices = read_table(remembering.directory, "notices", remembering.run).to_pylist()
    resumed = read_table(killed.directory, "resumptions", killed.run)["step"].to_pylist()
    frontiers = read_table(plain.directory, "events", plain.run)["frontier"].to_pylist()
    return {
        "equal": [result(run) == expected for run in (remembering, killed)],
        "spared": [spared(run) for run in (plain, remembering, killed)],
        "notices": [row["text"] for row in notices],
        "resumed": resumed,
        "frontiers": frontiers,
    }


def check(found: dict[str, Any], world_size: int) -> None:
    assert found["equal"] == [True, True]
    plain, remembering, killed = found["spared"]
    assert not any(plain)
    served = [round(part, 3) for part in remembering if part > 0]
    assert len(served) > (10 if world_size == 1 else 3)
    assert 0 < len([part for part in killed if part > 0]) < len(served)  # an interruption forgets
    assert len(found["resumed"]) == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_one_rank(tmp_path: Path, policy: str) -> None:
    found = three_runs(str(tmp_path), policy)
    check(found, 1)
    if policy == "from the front":
        assert found["frontiers"][0] == "6"
        assert found["notices"] == [
            "nothing is remembered: 0 is active",
            "outputs of [:5] are remembered; 5 drops at random",
        ]


def test_two_ranks(tmp_path: Path) -> None:
    found, _ = run_distributed(three_runs, 2, str(tmp_path), "from the front")
    check(found, 2)


def test_augmented_examples_are_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = job(tmp_path, 10**6, POLICIES["thaws"])
    monkeypatch.setattr("fat_ray.engine.order.TrainingOrder.repeats", lambda _: False)
    train_until(run)
    (notice,) = read_table(run.directory, "notices", run.run).to_pylist()
    assert notice["text"] == "nothing is remembered: training examples are augmented at random, so that none comes again"
    assert not any(spared(run))


def test_a_run_may_go_on_with_another_memory(tmp_path: Path) -> None:
    first = job(tmp_path, 0, POLICIES["thaws"])
    train_until(first, 26)
    train_until(job(tmp_path, 10**6, POLICIES["thaws"]))
    specs = [json.loads(text) for text in read_table(first.directory, "runs", first.run)["spec_json"].to_pylist()]
    assert [spec["freeze"]["cache_prefix_bytes"] for spec in specs] == [0]
    assert any(spared(first))
