"""Whether a cluster can run a study, and how many of its trials at the same time. Pure arithmetic, done before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from fat_ray.errors import ResourceError
from fat_ray.spec.study import StudySpec
from fat_ray.train.resources import Resources, places, shortage


@dataclass(frozen=True)
class Plan:
    """How a study uses a cluster.

    Attributes:
        concurrency: Trials that run at the same time.
        workers: DDP processes of each.
    """

    concurrency: int
    workers: int


def plan(spec: StudySpec, nodes: Sequence[Resources]) -> Plan:
    """Plans the study on the nodes of a cluster.

    Args:
        spec: The study.
        nodes: What each node that is alive has in total.

    Raises:
        ResourceError: Not even one trial fits; the message has the numbers.
    """
    problem = shortage(spec.train, nodes)
    if problem is not None:
        raise ResourceError(f"the study cannot run here: {problem}")
    fitting = sum(places(spec.train, node) for node in nodes) // spec.train.workers
    return Plan(min(fitting, spec.budget.concurrency or fitting), spec.train.workers)
