"""Room on one cluster: shares of a GPU, studies beside each other, and what stopped trials give back."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray
import torch
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fat_ray.events import Status
from fat_ray.records.reader import run_end, runs
from fat_ray.study.launch import launch
from fat_ray.train.resources import trial_resources, worker_resources
from tests.support.jobs import tiny_job
from tests.support.ray_session import RaySession, Usage
from tests.support.tiny_studies import BOUND_S, equal_trials, launched, wait_until
from tests.support.trials import run_trials

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def settled(session: RaySession, wanted: Usage) -> bool:
    """Whether the cluster has given out what is wanted; Ray frees with a delay."""
    wait_until(lambda: session.usage() == wanted, "all is free again")
    return True


def test_two_workers_are_placed_on_one_gpu_and_a_third_on_none(ray_session: RaySession, tmp_path: Path) -> None:
    before = ray_session.usage()
    train = tiny_job(tmp_path, workers=2, gpus=0.5).spec.train

    @ray.remote(num_cpus=0, num_gpus=worker_resources(train)["GPU"])
    def gpus() -> list[int]:
        return list(ray.get_gpu_ids())

    group = trial_resources(tiny_job(tmp_path, workers=2, gpus=0.5).spec, "warm").to_placement_group()
    try:
        assert group.wait(10)
        places = [PlacementGroupSchedulingStrategy(group, bundle) for bundle in (1, 2)]
        assert ray.get([gpus.options(scheduling_strategy=place).remote() for place in places]) == [[0], [0]]
        assert ray.available_resources().get("GPU", 0.0) == 0
        third = placement_group([worker_resources(train)])
        assert not third.wait(1)
        remove_placement_group(third)
    finally:
        remove_placement_group(group)
    assert settled(ray_session, before)


@pytest.mark.parametrize("executor", ["warm", "stock"])
def test_a_run_on_shares_of_a_gpu_gets_them_and_gives_them_back(ray_session: RaySession, tmp_path: Path, executor: str) -> None:
    """Where the GPU is one that only Ray believes in, the run must come as far as asking torch for it."""
    before = ray_session.usage()
    job = tiny_job(tmp_path, workers=2, gpus=0.5)
    last = run_trials([job], executor, tmp_path)[job.run][-1]
    if not torch.cuda.is_available():
        assert "train.gpus_per_worker = 0.5, but torch" in last["failure"]
        assert "finds no GPU" in last["failure"]
    assert settled(ray_session, before)


def test_after_twenty_trials_that_were_stopped_early_everything_is_free(ray_session: RaySession, tmp_path: Path) -> None:
    before = ray_session.usage()
    hopeless = {"name": "patience", "metric": "val/loss", "direction": "minimize", "patience": 1, "min_delta": 1000.0, "grace_steps": 2}
    spec = equal_trials("warm", slow_s=0.02, train={"steps": 400}, scheduler=hopeless, budget={"trials": 20})
    outcome = launch(spec, text="", directory=tmp_path / "study", quiet=True)
    assert [run.status for run in outcome.runs] == [Status.PRUNED] * 20
    assert settled(ray_session, before)


def test_studies_that_each_want_the_whole_cluster_take_turns(ray_session: RaySession, tmp_path: Path) -> None:
    """None fails for want of room, although each waits longer than a trial may be without any place on the cluster."""
    before = ray_session.usage()
    specs = [
        equal_trials("warm", name="warm", slow_s=0.2, budget={"trials": 2, "placement_timeout_s": 1}),
        equal_trials("stock", name="first", slow_s=0.2, budget={"trials": 1, "placement_timeout_s": 1}),
        equal_trials("stock", name="second", slow_s=0.2, budget={"trials": 1, "placement_timeout_s": 1}),
    ]
    with ExitStack() as studies:
        drivers = [studies.enter_context(launched(spec, ray_session.address, tmp_path)) for spec in specs]
        deadline_s = time.monotonic() + BOUND_S
        codes = [driver.wait(deadline_s - time.monotonic()) for driver in drivers]
    assert codes == [0, 0, 0], "".join(path.read_text() for path in tmp_path.glob("*.log"))
    for spec in specs:
        ends = [run_end(tmp_path / spec.name, run) for run in runs(tmp_path / spec.name)]
        assert [end.status for end in ends if end is not None] == [Status.COMPLETED] * spec.budget.trials
    assert settled(ray_session, before)
