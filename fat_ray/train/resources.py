"""What the workers of a run need, whether nodes can hold them, and what Tune has to reserve for a trial.

Neither torch nor Ray is imported for the asking.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from fat_ray.spec.run import RunSpec, TrainSpec

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

Executor = Literal["stock", "warm"]
"""stock: Ray Train's public API, new processes for each run. warm: the processes of a trial slot are kept (see train/warm.py)."""

Resources = Mapping[str, float]
"""Ray's resources of one node, such as ``{"CPU": 8.0, "GPU": 1.0}``."""

_ROUNDING = 1e-6  # Ray counts in ten-thousandths: 3 × 0.3333 fit into one

DRIVER = {"memory": 1}
"""What a trial's driver is booked with: one byte, since it waits nearly all the time. Tune refuses an empty booking, and any share
of a CPU would keep the workers from using all CPUs of a node."""


def threads(spec: TrainSpec) -> int:
    """Threads that one worker computes with."""
    return max(1, int(spec.cpus_per_worker))


def backend(spec: TrainSpec) -> str:
    """Collective backend. NCCL refuses two workers on one GPU, so a share of a GPU means gloo."""
    if spec.backend != "auto":
        return spec.backend
    return "nccl" if spec.gpus_per_worker >= 1 else "gloo"


def worker_resources(spec: TrainSpec) -> dict[str, float]:
    """Ray resources of one worker."""
    resources = {"CPU": spec.cpus_per_worker}
    if spec.gpus_per_worker:
        resources["GPU"] = spec.gpus_per_worker
    return resources


def workers_per_gpu(spec: TrainSpec) -> int:
    """Workers that share a GPU; 1 where each has one or several of its own. A share never spans two GPUs: of 0.4 there are two on each."""
    return int(1 / spec.gpus_per_worker + _ROUNDING) if 0 < spec.gpus_per_worker < 1 else 1


def gpu_of(spec: TrainSpec, rank: int) -> int:
    """Index of the first GPU of a worker when all workers are on one machine."""
    return rank // workers_per_gpu(spec) if spec.gpus_per_worker < 1 else rank * int(spec.gpus_per_worker)


def places(spec: TrainSpec, node: Resources) -> int:
    """Workers that fit on one node, if nothing else is on it."""
    found = node.get("CPU", 0.0) / spec.cpus_per_worker
    if spec.gpus_per_worker >= 1:
        found = min(found, node.get("GPU", 0.0) / spec.gpus_per_worker)
    elif spec.gpus_per_worker:
        found = min(found, int(node.get("GPU", 0.0)) * workers_per_gpu(spec))
    return int(found + _ROUNDING)


def shortage(spec: TrainSpec, nodes: Sequence[Resources]) -> str | None:
    """Why the workers of one run do not fit on a cluster, with the numbers, even if nothing else is on it; None when they do.

    Args:
        spec: The run's.
        nodes: What each node that is alive has in total.
    """
    fitting = [places(spec, node) for node in nodes]
    if sum(fitting) >= spec.workers:
        return None
    wanted = {"CPU": spec.cpus_per_worker, "GPU": spec.gpus_per_worker}
    for kind, each in wanted.items():
        has = sum(node.get(kind, 0.0) for node in nodes)
        if each * spec.workers > has + _ROUNDING:
            needs = f"{_workers(spec)} x {each:g} {kind}s = {spec.workers * each:g} {kind}s"
            return f"a run needs {needs}, the cluster has {has:g} (train.workers, train.{kind.lower()}s_per_worker)"
    share = " and ".join(f"{each:g} {kind}s" for kind, each in wanted.items() if each)
    return (
        f"a run needs {_workers(spec)} with {share} each on one node{_rule(spec)}; "
        f"of the cluster's {len(nodes)} nodes none holds more than {max(fitting, default=0)}, all together {sum(fitting)}"
    )


def _workers(spec: TrainSpec) -> str:
    return f"{spec.workers} worker" + ("s" if spec.workers != 1 else "")


def _rule(spec: TrainSpec) -> str:
    return f" ({workers_per_gpu(spec)} to a GPU, since a share never spans two)" if 0 < spec.gpus_per_worker < 1 else ""


def trial_resources(spec: RunSpec, executor: Executor) -> "PlacementGroupFactory":
    """What Tune reserves for a trial: for `tune.with_resources`.

    warm: the driver and, in bundles 1 to n, its workers, so that Tune counts, gang-schedules and frees everything. stock: the driver
    alone, since Ray Train reserves its workers itself and Tune cannot count them; whoever plans the study limits its concurrency.

    Args:
        spec: The run that each trial trains.
        executor: As returned by `fat_ray.train.run.resolve`.
    """
    from ray import tune

    bundles = [dict[str, float](DRIVER)]
    if executor == "warm":
        bundles += [worker_resources(spec.train)] * spec.train.workers
    return tune.PlacementGroupFactory(bundles)
