"""The first event of a run, made from its job."""

from collections.abc import Sequence
from datetime import UTC, datetime

from fat_ray.events import GroupInfo, RunStart
from fat_ray.records.environment import capture
from fat_ray.spec.job import RunJob


def start_of(job: RunJob, groups: Sequence[GroupInfo], *, world_size: int, device: str, processor: str = "") -> RunStart:
    """How a job starts, now and in the environment of this process.

    Args:
        job: The run.
        groups: All groups in network order; none for a run that broke before its network was built.
        world_size: Number of workers.
        device: What they train on, such as ``cpu`` or ``cuda``.
        processor: Its kind, as in `environment.capture`.
    """
    return RunStart(
        run=job.run,
        study=job.study,
        trial=job.trial,
        seed=job.seed,
        role=job.role,
        label=job.label,
        params=job.params,
        spec=job.spec.model_dump(mode="json"),
        environment=capture(world_size=world_size, device=device, processor=processor),
        groups=groups,
        started_at=datetime.now(UTC),
        follow=job.follow,
    )
