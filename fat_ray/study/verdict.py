"""How a trial ended and what it is worth: read from the records of its runs, which are the truth."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from fat_ray.errors import RecordError
from fat_ray.events import RunEnd, Status
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.reader import read_table, run_end, run_start, runs
from fat_ray.spec.study import Objective
from fat_ray.study.ledger import Trial

COSTS = ("mean_active", "mean_active_fraction", "worker_s", "train_s", "flops")
"""Objectives that are costs of a run, not metrics of its task."""


def conclude(trial: Trial, directory: Path, failure: str | None, now_s: float) -> list[RunEnd]:
    """Enters how the trial ended; returns the ends of its runs that completed, in the order of its seeds.

    Args:
        trial: The trial, which runs no more.
        directory: The study's directory.
        failure: Why it failed, as told by the trial's process; None when it told nothing.
        now_s: Monotonic clock.
    """
    completed: list[RunEnd] = []
    status, reason = Status.COMPLETED, ""
    for job in trial.jobs:
        end, status, reason = _end(trial, directory, job.run, failure)
        trial.ends[job.run] = status
        if end is None:
            break
        completed.append(end)
    trial.status, trial.reason, trial.ended_s = status, reason, now_s
    return completed


def _end(trial: Trial, directory: Path, run: str, failure: str | None) -> tuple[RunEnd | None, Status, str]:
    """How a run ended and why; its end only if it completed."""
    try:
        end = run_end(directory, run)
        if end is None:
            end = _record_end(trial, directory, run, failure)
    except RecordError as error:
        return None, Status.FAILED, failure or str(error)
    trial.step = end.steps
    if end.status is Status.COMPLETED:
        return end, end.status, ""
    return None, end.status, (failure if end.status is Status.FAILED else None) or end.reason


def _record_end(trial: Trial, directory: Path, run: str, failure: str | None) -> RunEnd:
    """The end of a run that could not write it itself, with the costs that are in its records; recorded if the run had begun."""
    start = run_start(directory, run) if run in runs(directory) else None
    if failure is None and trial.asked_to_stop is Status.STOPPED:
        status, reason = Status.STOPPED, "the study ended while it ran" if start else "stopped before it began"
    else:
        status, reason = Status.FAILED, failure or f"its processes ended without a word; see logs/{run}.log"
    steps = read_table(directory, "steps", run)
    active = steps["active_elements"].to_numpy()
    train_s = float(steps["step_s"].to_numpy().sum())
    mean_active = float(active.mean()) if len(active) else 0.0
    end = RunEnd(
        status=status,
        reason=reason,
        steps=len(steps),
        wall_s=train_s,
        train_s=train_s,
        worker_s=train_s * trial.jobs[0].spec.train.workers,
        updates=int(active.sum()),
        flops=float(steps["flops"].to_numpy().sum()),
        mean_active=mean_active,
        mean_active_fraction=mean_active / start.total_elements if start else 0.0,
    )
    if start is not None:
        sink = ParquetSink(directory, run, start=start)
        sink.emit(end)
        sink.close()
    return end


def objective_values(objectives: Sequence[Objective], ends: Sequence[RunEnd]) -> list[float]:
    """The value of each objective: the mean over the runs of a trial.

    Raises:
        ValueError: A value is missing, NaN or infinite; the message says which.
    """
    return [fmean(_value(objective.metric, end) for end in ends) for objective in objectives]


def _value(metric: str, end: RunEnd) -> float:
    value = getattr(end, metric) if metric in COSTS else end.final.get(metric)
    if value is None:
        known = ", ".join(sorted(name for name in end.final if name.startswith("val/")))
        raise ValueError(f"objective {metric} was not reported; the task reports {known or 'no val metrics'}")
    if not math.isfinite(value):
        raise ValueError(f"objective {metric} is {value}")
    return float(value)
