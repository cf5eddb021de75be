"""What one worker of a run is given."""

from fat_ray.spec.run import TrainSpec


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
