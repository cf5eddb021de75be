"""Small studies, and records of runs that were never trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fat_ray.events import Eval, Freeze, GroupInfo, RunEnd, Status
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.start import start_of
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import StudySpec
from tests.support.runs import step as run_step

ELEMENTS = 100
COSTS = {"flops_forward": 4.0, "flops_input_gradient": 3.0, "flops_weight_gradient": 3.0, "comm_bytes": 7, "step_s": 0.25}


def small_study(**sections: Any) -> StudySpec:
    """A study that searches the threshold; `sections` replace its own."""
    data = {
        "name": "small",
        "train": {"steps": 8, "evaluate_every": 2},
        "search": {"freeze.threshold": {"type": "float", "low": -1.0, "high": 0.0}},
        "budget": {"trials": 3},
        **sections,
    }
    return StudySpec.model_validate(data)


def write_run(
    job: RunJob,
    status: Status | None = Status.COMPLETED,
    *,
    final: Mapping[str, float] | None = None,
    mean_active: float = 50.0,
    schedule: Sequence[tuple[int, int]] = (),
    reason: str = "",
    steps: int = 8,
) -> None:
    """Writes the records that a run would have left; with status None it was killed before it could write its end."""
    sink = ParquetSink(job.directory, job.run)
    sink.emit(start_of(job, [GroupInfo("all", "layer", "Linear", ELEMENTS)], world_size=1, device="cpu"))
    active = ELEMENTS
    for step in range(steps):
        sink.emit(replace(run_step(step), active_elements=active, **COSTS))
    for event, (step, remaining) in enumerate(schedule):
        sink.emit(_freeze(step, event, active - remaining, remaining))
        active = remaining
    metrics = {"f1": 0.5, "loss": 1.0} if final is None else dict(final)
    sink.emit(Eval(step=steps, split="val", metrics=metrics, eval_s=0.1))
    if status is not None:
        sink.emit(_end(status, reason, {f"val/{name}": value for name, value in metrics.items()}, mean_active, steps))
    sink.close()


def _freeze(step: int, event: int, frozen: int, remaining: int) -> Freeze:
    return Freeze(
        step=step,
        event=event,
        frozen=[0] if frozen else [],
        frozen_elements=frozen,
        active_elements=remaining,
        active_groups=1,
        threshold=-0.5,
        limited_by="",
        decide_s=0.01,
    )


def _end(status: Status, reason: str, final: Mapping[str, float], mean_active: float, steps: int) -> RunEnd:
    return RunEnd(
        status=status,
        reason=reason,
        steps=steps,
        wall_s=3.0,
        train_s=2.0,
        worker_s=6.0,
        updates=int(mean_active * steps),
        flops=10.0 * steps,
        mean_active=mean_active,
        mean_active_fraction=mean_active / ELEMENTS,
        final=final,
        best=final,
    )
