"""Runs of the tiny task."""

from pathlib import Path
from typing import Any

from fat_ray.spec.job import RunJob
from fat_ray.spec.run import CheckpointSpec, DriftSpec, FisherSpec, FreezeSpec, GroupSpec, RunSpec, TrainSpec
from fat_ray.spec.task import CustomTaskSpec
from tests.support.tiny_task import TINY_TASK, TinyTask, make_task

STEPS = 8


def tiny_spec(
    *,
    workers: int = 2,
    steps: int = STEPS,
    evaluate_every: int = 2,
    policy: str = "fisher_drift",
    checkpoint: int | None = 0,
    retries: int = 0,
    gpus: float = 0.0,
    stall_timeout_s: float = 600.0,
    **settings: Any,
) -> RunSpec:
    """A run that freezes something and takes a fraction of a second; `settings` are those of `tiny_task.make_task`.

    `checkpoint` is `train.checkpoint.every`: without checkpoints, a run that only emits events leaves no files.
    """
    return RunSpec(
        task=CustomTaskSpec(name=TINY_TASK, settings=settings),
        train=TrainSpec(
            steps=steps,
            global_batch=8,
            evaluate_every=evaluate_every,
            workers=workers,
            cpus_per_worker=0.5,
            gpus_per_worker=gpus,
            checkpoint=CheckpointSpec(every=checkpoint),
            retries=retries,
            stall_timeout_s=stall_timeout_s,
        ),
        fisher=FisherSpec(every=1, groups=GroupSpec(blocks=2)),
        drift=DriftSpec(bins=8),
        freeze=FreezeSpec.model_validate({"policy": policy, "threshold": 0.0, "every": 2, "warmup_steps": 2}),
    )


def tiny_job(directory: Path, run: str = "run-s0", *, seed: int = 0, **spec: Any) -> RunJob:
    """One run of `tiny_spec`."""
    return RunJob(study="tiny", run=run, trial=None, seed=seed, role="single", spec=tiny_spec(**spec), directory=str(directory))


def task_of(job: RunJob) -> TinyTask:
    """The tiny task of a job, built directly."""
    assert isinstance(job.spec.task, CustomTaskSpec)
    return make_task(**job.spec.task.settings)
