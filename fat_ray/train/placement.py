"""Waiting for a place on the cluster: as long as others hold it, and no longer than stated once the cluster is too small."""

import time
from collections.abc import Callable, Sequence

import ray
from ray.util import placement_group, remove_placement_group

from fat_ray.errors import NotBegunError, RunFailedError
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import TrainSpec
from fat_ray.train.resources import Resources, shortage, worker_resources
from fat_ray.train.stop import stop_requested

LOOK_S = 1.0
"""Time between two looks at the nodes, and at requests to stop, while a run waits."""


def alive_nodes() -> list[Resources]:
    """What each node of the connected cluster that is alive has in total."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


class Watch:
    """Tells when a cluster has been too small for a run for too long. That others use it is no reason to give up: they will end.

    Args:
        spec: The run's.
        timeout_s: How long it may be too small, since a node that left may come back.
        nodes: Asked for the nodes.
    """

    def __init__(self, spec: TrainSpec, timeout_s: float, nodes: Callable[[], Sequence[Resources]] = alive_nodes) -> None:
        self._spec, self._timeout_s, self._nodes = spec, timeout_s, nodes
        self._since_s: float | None = None

    def look(self, now_s: float) -> str | None:
        """The reason to give up, with the numbers; None to go on."""
        problem = shortage(self._spec, self._nodes())
        if problem is None:
            self._since_s = None
            return None
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s < self._timeout_s:
            return None
        return f"for {self._timeout_s:g} s (budget.placement_timeout_s) the cluster was too small: {problem}"


def await_place(job: RunJob, timeout_s: float) -> None:
    """Returns once all workers of a run can be placed at once. Others may be quicker then: whoever places them has to ask again.

    Raises:
        NotBegunError: The run was asked to stop.
        RunFailedError: The cluster has been too small for longer than `timeout_s`; the message has the numbers.
    """
    spec = job.spec.train
    watch = Watch(spec, timeout_s)
    trial = placement_group([worker_resources(spec)] * spec.workers)
    try:
        while not trial.wait(LOOK_S):
            if stop_requested(job.directory, job.run):
                raise NotBegunError("stopped while it waited for a place on the cluster")
            if (problem := watch.look(time.monotonic())) is not None:
                raise RunFailedError(problem)
    finally:
        remove_placement_group(trial)
