"""How a study stands, from its records alone: safe while the study runs, right after it, and on another machine."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from fat_ray.analysis.read import Study, collect, open_studies, scan, tolerantly
from fat_ray.spec.study import num_trials, shown_objective

RUNNING = "running"
"""State of a run that has begun and not ended; one whose driver was killed stays here."""


_LAST = 13  # columns of the heading "last val/f1"


@dataclass(frozen=True)
class RunState:
    """How one run stands.

    Attributes:
        state: ``running``, or how it ended (`fat_ray.events.Status`).
        step: Optimizer steps done.
        steps: Optimizer steps of a full run.
        value: Last value of the study's metric; None before the first evaluation.
        active_fraction: Share of the parameter entries that still train; None before the first step.
        elapsed_s: Seconds since the run began, or from its beginning to its end.
        reason: Why it ended early; empty otherwise.
    """

    run: str
    state: str
    step: int
    steps: int
    value: float | None
    active_fraction: float | None
    elapsed_s: float
    reason: str


@dataclass(frozen=True)
class StudyStatus:
    """How a study stands.

    Attributes:
        study: Its name.
        metric: What `RunState.value` is, such as ``val/f1``.
        planned: Runs of the search and of the baselines that the study was launched for.
        counts: State to number of runs; runs that have not begun are not among them.
        runs: In the order in which they began.
        damage: What could not be read, a sentence each.
    """

    study: str
    metric: str
    planned: int
    counts: dict[str, int]
    runs: list[RunState]
    damage: list[str] = field(default_factory=list)


def read_status(directory: Path | str, now: datetime | None = None) -> StudyStatus:
    """How the study in a directory stands.

    Args:
        directory: The study's directory, or its URI.
        now: The present, with a time zone; None: ask the clock.

    Raises:
        RecordError: There is no study, or its records cannot be read.
    """
    return tolerantly(open_studies([directory]), lambda studies: _status(studies[0], now or datetime.now(UTC)))


def _status(study: Study, now: datetime) -> StudyStatus:
    metric = shown_objective(study.spec).metric
    table = collect(_query(study, metric), [study])
    runs = [_run_state(row, now) for row in table.iter_rows(named=True)]
    counts = dict(sorted(Counter(run.state for run in runs).items()))
    planned = num_trials(study.spec) * len(study.spec["seeds"])
    return StudyStatus(study.manifest.name, metric, planned, counts, runs, list(study.damage))


def _query(study: Study, metric: str) -> pl.LazyFrame:
    """One row per run, in the order in which they began."""
    split, _, name = metric.partition("/")
    last_step = scan([study], "steps").sort("step").group_by("run").agg(pl.last("step"), pl.last("active_elements"))
    judged = scan([study], "evals").filter(pl.col("split") == split, pl.col("metric") == name)
    last_value = judged.sort("step").group_by("run").agg(pl.last("value"))
    ends = scan([study], "ends").group_by("run").agg(pl.last("status", "reason", "wall_s"))
    begun = scan([study], "runs").sort("started_at").group_by("run").agg(pl.last("spec_json", "total_elements", "started_at"))
    joined = begun.join(last_step, on="run", how="left").join(last_value, on="run", how="left").join(ends, on="run", how="left")
    return joined.sort("started_at", "run")


def _run_state(row: dict[str, Any], now: datetime) -> RunState:
    active, elapsed = row["active_elements"], row["wall_s"]
    return RunState(
        run=row["run"],
        state=row["status"] or RUNNING,
        step=0 if row["step"] is None else row["step"] + 1,
        steps=json.loads(row["spec_json"])["train"]["steps"],
        value=row["value"],
        active_fraction=None if active is None else active / row["total_elements"],
        elapsed_s=(now - row["started_at"]).total_seconds() if elapsed is None else elapsed,
        reason=" ".join((row["reason"] or "").split()),
    )


def as_json(status: StudyStatus) -> str:
    """The status as JSON with stable keys."""
    return json.dumps(asdict(status), indent=2)


def as_text(status: StudyStatus) -> str:
    """The status as text: one line for the study, one per run."""
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items()) or "nothing has begun"
    width = max([len("run"), *(len(run.run) for run in status.runs)])
    last = f"last {status.metric}"
    heading = f"{'run':<{width}}  {'state':<9}  {'step':>11}  {last:>{_LAST}}  {'active':>6}  {'elapsed':>8}"
    lines = [f"{status.study}: {len(status.runs)} of {status.planned} runs begun: {counts}"]
    return "\n".join([*lines, *([heading] if status.runs else []), *(_line(run, width) for run in status.runs), *status.damage])


def _line(run: RunState, width: int) -> str:
    value = "-" if run.value is None else f"{run.value:.4f}"
    active = "-" if run.active_fraction is None else f"{run.active_fraction:.0%}"
    minutes, seconds = divmod(round(run.elapsed_s), 60)
    step, elapsed = f"{run.step}/{run.steps}", f"{minutes}:{seconds:02d}"
    line = f"{run.run:<{width}}  {run.state:<9}  {step:>11}  {value:>{_LAST}}  {active:>6}  {elapsed:>8}"
    return f"{line}  {run.reason}".rstrip()
