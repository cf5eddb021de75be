"""Whether a cluster can run a study, and how many of its trials at the same time. Pure arithmetic, done before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fat_ray.errors import ResourceError
from fat_ray.spec.run import TrainSpec
from fat_ray.spec.study import StudySpec

Resources = Mapping[str, float]
"""Ray's resources of one node, such as ``{"CPU": 8.0, "GPU": 1.0}``."""

_ROUNDING = 1e-6  # Ray counts in ten-thousandths: 3 × 0.3333 fit into one


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
    train = spec.train
    places = sum(_workers_on(node, train) for node in nodes)
    if places < train.workers:
        raise ResourceError(_explain(train, nodes))
    fitting = places // train.workers
    return Plan(min(fitting, spec.budget.concurrency or fitting), train.workers)


def _workers_on(node: Resources, train: TrainSpec) -> int:
    """Workers that fit on one node."""
    places = node.get("CPU", 0.0) / train.cpus_per_worker
    if train.gpus_per_worker:
        places = min(places, node.get("GPU", 0.0) / train.gpus_per_worker)
    return int(places + _ROUNDING)


def _explain(train: TrainSpec, nodes: Sequence[Resources]) -> str:
    wanted = {"CPU": train.cpus_per_worker, "GPU": train.gpus_per_worker}
    for kind, each in wanted.items():
        has = sum(node.get(kind, 0.0) for node in nodes)
        if each * train.workers > has + _ROUNDING:
            needs = f"{_workers(train)} x {each:g} {kind}s = {train.workers * each:g} {kind}s"
            return (
                f"the study cannot run here: a run needs {needs}, the cluster has {has:g} (train.workers, train.{kind.lower()}s_per_worker)"
            )
    most = max((_workers_on(node, train) for node in nodes), default=0)
    share = " and ".join(f"{each:g} {kind}s" for kind, each in wanted.items() if each)
    return (
        f"the study cannot run here: a run needs {_workers(train)} with {share} each on one node; "
        f"of the cluster's {len(nodes)} nodes none holds more than {most}, all together {sum(_workers_on(node, train) for node in nodes)}"
    )


def _workers(train: TrainSpec) -> str:
    return f"{train.workers} worker" + ("s" if train.workers != 1 else "")
