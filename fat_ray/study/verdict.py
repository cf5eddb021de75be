"""How a trial ended and what it is worth: read from the records of its runs, which are the truth."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fat_ray.engine.vault import checkpoints, step_of
from fat_ray.errors import RecordError, RunFailedError
from fat_ray.events import RunEnd, RunStart, Status
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.reader import read_table, run_end, run_start, runs
from fat_ray.records.redact import scrub
from fat_ray.records.start import start_of
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import COSTS, Objective
from fat_ray.study.ledger import Cost, Trial
from fat_ray.train.lease import sole_writer

_PATIENCE_S = 10.0
"""How long the driver waits for a process that is about to end."""


def conclude(trial: Trial, directory: Path, failure: str | None, now_s: float, *, for_good: bool = True) -> list[RunEnd]:
    """Enters how the trial ended; returns the ends of its runs that completed, in the order of its seeds.

    Args:
        trial: The trial, which runs no more.
        directory: The study's directory.
        failure: Why it failed, as told by the trial's process; None when it told nothing.
        now_s: Monotonic clock.
        for_good: False when the study was interrupted: a run without a result is stopped, whatever became of it, and nothing is written.
    """
    completed: list[RunEnd] = []
    status, reason = Status.COMPLETED, ""
    for job in trial.jobs:
        end, status, reason = _end(trial, directory, job.run, failure) if for_good else _end_so_far(trial, directory, job.run, failure)
        trial.ends[job.run] = status
        if end is None:
            break
        completed.append(end)
    trial.status, trial.reason, trial.ended_s, trial.results = status, reason, now_s, completed
    return completed


def _end(trial: Trial, directory: Path, run: str, failure: str | None) -> tuple[RunEnd | None, Status, str]:
    """How a run ended and why; its end only if it completed."""
    try:
        end = run_end(directory, run)
        if end is None:
            end = _record_end(trial, directory, run, failure)
    except (RecordError, RunFailedError) as error:
        return None, Status.FAILED, failure or str(error)
    return _entered(trial, end, run, failure)


def _end_so_far(trial: Trial, directory: Path, run: str, failure: str | None) -> tuple[RunEnd | None, Status, str]:
    """The same of a run that may go on: how it ended if that is final."""
    try:
        end = run_end(directory, run)
    except RecordError as error:
        return None, Status.STOPPED, failure or str(error)
    if end is None or end.status is Status.FAILED:
        return None, Status.STOPPED, failure or "the study was interrupted"
    return _entered(trial, end, run, failure)


def _entered(trial: Trial, end: RunEnd, run: str, failure: str | None) -> tuple[RunEnd | None, Status, str]:
    trial.step = end.steps
    trial.spent[run] = Cost(end.worker_s, end.flops)
    if end.status is Status.COMPLETED:
        return end, end.status, ""
    return None, end.status, (failure if end.status is Status.FAILED else None) or end.reason


def _record_end(trial: Trial, directory: Path, run: str, failure: str | None) -> RunEnd:
    """The end of a run that could not write it itself."""
    job = next(job for job in trial.jobs if job.run == run)
    if failure is not None or trial.asked_to_stop is not Status.STOPPED:
        return record_end(job, directory, Status.FAILED, failure or f"its processes ended without a word; see logs/{run}.log")
    began = run in runs(directory)
    return record_end(job, directory, Status.STOPPED, "the study ended while it ran" if began else "stopped before it began")


def recall(trial: Trial, directory: Path) -> bool:
    """Enters what the records say of a trial that another driver ran, up to the checkpoint from which it is to go on.

    Returns:
        Whether nothing of it is left to train. A run that failed is: whether that was its own fault, or the consequence of a kill that
        reached its workers one after the other, only the driver that saw it could tell.
    """
    for position, job in enumerate(trial.jobs):
        try:
            end = run_end(directory, job.run)
            goes_on = end is None or end.status in (Status.FAILED, Status.STOPPED)
            steps = _step_to_go_on_from(directory, job.run) if goes_on else trial.steps
            _recall_evaluations(trial, directory, position, steps)
            trial.spent[job.run] = Cost(end.worker_s, end.flops) if end and not goes_on else _spent(job, directory, steps)
        except RecordError:
            return True  # `conclude` tells why
        if goes_on:
            return False
        if end is not None and end.status is not Status.COMPLETED:
            return True
        trial.note({"seeds_done": position + 1})
    return True


def _step_to_go_on_from(directory: Path, run: str) -> int:
    """Steps done in the newest checkpoint. If it turns out to be damaged, the run goes further back, and `Trial.note` with it."""
    return max((step_of(path) for path in checkpoints(directory, run)), default=0)


def _recall_evaluations(trial: Trial, directory: Path, position: int, steps: int) -> None:
    found: dict[int, dict[str, float]] = {}
    for row in read_table(directory, "evals", trial.jobs[position].run).to_pylist():
        if row["split"] == "val" and row["value"] is not None and row["step"] <= steps:
            found.setdefault(row["step"], {})[f"val/{row['metric']}"] = row["value"]
    for step in sorted(found):
        trial.note({"step": step, "position": position, **found[step]})


def _spent(job: RunJob, directory: Path, steps: int) -> Cost:
    done = read_table(directory, "steps", job.run).filter(pc.field("step") < steps)
    return Cost(float(done["step_s"].to_numpy().sum()) * job.spec.train.workers, float(done["flops"].to_numpy().sum()))


def record_end(job: RunJob, directory: Path, status: Status, reason: str) -> RunEnd:
    """Records the end of a run that could not write it itself, with the costs that are in its records.

    A run that broke before it could record its start gets one without groups, so that whoever reads the records finds it.

    Args:
        job: The run, none of whose processes is left.
        directory: The study's directory.
        status: How it ended.
        reason: Why.

    Raises:
        RecordError: The records cannot be read or written.
        RunFailedError: A process of the run is left after all, and writes them still.
    """
    with sole_writer(directory, job.run, job.driver, wait_s=_PATIENCE_S):
        return _record_end_alone(job, directory, status, reason)


def _record_end_alone(job: RunJob, directory: Path, status: Status, reason: str) -> RunEnd:
    spec, begun = job.spec.train, job.run in runs(directory)
    device = "cuda" if spec.gpus_per_worker else "cpu"
    start = run_start(directory, job.run) if begun else start_of(job, [], world_size=spec.workers, device=device)
    end = _end_from_steps(read_table(directory, "steps", job.run), start, spec.workers, status, scrub(reason))
    sink = ParquetSink(directory, job.run, start=start)
    if not begun:
        sink.emit(start)
    sink.emit(end)
    sink.close()
    return end


def _end_from_steps(steps: pa.Table, start: RunStart, workers: int, status: Status, reason: str) -> RunEnd:
    active = steps["active_elements"].to_numpy()
    train_s = float(steps["step_s"].to_numpy().sum())
    mean_active = float(active.mean()) if len(active) else 0.0
    return RunEnd(
        status=status,
        reason=reason,
        steps=len(steps),
        wall_s=train_s,
        train_s=train_s,
        worker_s=train_s * workers,
        updates=int(active.sum()),
        flops=float(steps["flops"].to_numpy().sum()),
        mean_active=mean_active,
        mean_active_fraction=mean_active / start.total_elements if len(active) else 0.0,
        comm_bytes=pc.sum(steps["comm_bytes"]).as_py(),
        optimizer_bytes=pc.max(steps["optimizer_bytes"]).as_py(),
        peak_memory_bytes=pc.max(steps["peak_memory_bytes"]).as_py(),
    )


def objective_values(objectives: Sequence[Objective], ends: Sequence[RunEnd]) -> list[float]:
    """The value of each objective: the mean over the runs of a trial.

    Raises:
        ValueError: A value is missing, NaN or infinite; the message says which.
    """
    return [fmean(_value(objective.metric, end) for end in ends) for objective in objectives]


def worth(trial: Trial, objectives: Sequence[Objective]) -> list[float] | None:
    """The values of its objectives if it completed, and has all of them; else None."""
    if trial.status is not Status.COMPLETED:
        return None
    try:
        return objective_values(objectives, trial.results)
    except ValueError:
        return None


def seed_values(objectives: Sequence[Objective], ends: Sequence[RunEnd]) -> dict[str, Any]:
    """What is shown beside the means: the objectives of each seed, in the order of the seeds, and their sample standard deviation.

    Args:
        objectives: Of the study.
        ends: Ends of a trial's runs, for which `objective_values` found values.
    """
    values = {objective.metric: [_value(objective.metric, end) for end in ends] for objective in objectives}
    spread = {metric: stdev(found) for metric, found in values.items()} if len(ends) > 1 else {}
    return {"seed_values": values, "seed_std": spread}


def _value(metric: str, end: RunEnd) -> float:
    value = getattr(end, metric) if metric in COSTS else end.final.get(metric)
    if value is None:
        known = ", ".join(sorted(name for name in end.final if name.startswith("val/")))
        raise ValueError(f"objective {metric} was not reported; the task reports {known or 'no val metrics'}")
    if not math.isfinite(value):
        raise ValueError(f"objective {metric} is {value}")
    return float(value)
