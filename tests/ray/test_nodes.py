"""A cluster whose nodes leave in the middle of a study."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fat_ray.events import Status
from fat_ray.records.reader import read_table, run_end
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import StudySpec
from fat_ray.train.local import run_local
from tests.support.nodes import Node, cluster
from tests.support.tiny_studies import BOUND_S, equal_trials, launched, wait_until
from tests.support.tiny_task import TINY_TASK

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600, func_only=False)]


def num_evaluations(directory: Path, run: str) -> int:
    return len({row["step"] for row in read_table(directory, "evals", run).to_pylist()})


def num_resumptions(directory: Path, run: str) -> int:
    return int(read_table(directory, "resumptions", run).num_rows)


def the_one(nodes: Sequence[Node], *, trial: bool) -> Node:
    """A node with a worker, with the trial's own process or without it."""
    return next(node for node in nodes if node.hosts("RayTrainWorker") and node.hosts("ImplicitFunc") is trial)


def cold(spec: StudySpec, directory: Path) -> list[float]:
    """Losses of a trial in processes that nothing ran in before, without Ray."""
    train = {**spec.run.train.model_dump(mode="json"), "optimizer": {**spec.train.optimizer.model_dump(mode="json"), "lr": 0.01}}
    settings = {"task": {"name": TINY_TASK, "settings": {"batch_norm": True}}, "train": {**train, "cpus_per_worker": 1.0}}
    run = spec.run.model_validate_json(json.dumps({**spec.run.model_dump(mode="json"), **settings}))
    job = RunJob(study="tiny", run="cold", trial=None, seed=0, role="single", spec=run, directory=str(directory / "cold"))
    run_local(job)
    return list(read_table(job.directory, "steps", "cold")["loss"].to_pylist())


@pytest.mark.parametrize("executor", ["warm", "stock"])
def test_a_study_survives_nodes_that_leave_and_ends_with_the_numbers_when_too_few_are_left(tmp_path: Path, executor: str) -> None:
    train = {"steps": 60, "evaluate_every": 6, "retries": 2}
    spec = equal_trials(executor, slow_s=0.1, train=train, budget={"trials": 2, "placement_timeout_s": 5})
    out = tmp_path / "tiny"
    with cluster() as nodes:
        present = [nodes.add() for _ in range(3)]
        with launched(spec, nodes.address, tmp_path) as driver:
            wait_until(lambda: num_evaluations(out, "t0000-s0") > 1, "the first trial is evaluated")
            leaving = the_one(present, trial=False)
            leaving.kill()
            present.remove(leaving)
            wait_until(lambda: num_resumptions(out, "t0000-s0") == 1, "the first trial goes on elsewhere")
            wait_until(lambda: run_end(out, "t0000-s0") is not None, "the first trial ends")
            wait_until(lambda: num_evaluations(out, "t0001-s0") > 0, "the second trial is evaluated")
            present[0].kill()
            assert driver.wait(BOUND_S) == 1
    log = (tmp_path / "tiny.log").read_text()
    first, second = run_end(out, "t0000-s0"), run_end(out, "t0001-s0")
    assert first is not None
    assert second is not None
    assert (first.status, second.status) == (Status.COMPLETED, Status.FAILED), log
    assert read_table(out, "steps", "t0000-s0")["loss"].to_pylist() == cold(spec, tmp_path)
    reason = "for 5 s (budget.placement_timeout_s) the cluster was too small: a run needs 2 workers x 1 CPUs = 2 CPUs, the cluster has 1"
    assert f"t0001-s0 failed: {reason}" in log
    if executor == "warm":  # the last stock trial may find out by itself, which leaves nothing to end early
        assert f"the study ended early: {reason}" in log
