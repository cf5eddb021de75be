"""What the workers of a run need, and what Tune has to reserve for a trial. Neither torch nor Ray is imported for the asking."""

from typing import TYPE_CHECKING, Literal

from fat_ray.spec.run import RunSpec, TrainSpec

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

Executor = Literal["stock", "warm"]
"""stock: Ray Train's public API, new processes for each run. warm: the processes of a trial slot are kept (see train/warm.py)."""

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
