"""What a dashboard shows of a run: names and values computed from its records, one row per step."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain, groupby
from typing import Any

import numpy as np
import pyarrow as pa

from fat_ray.events import RunEnd, Status

AXIS = "train/global_step"
"""Horizontal axis of all metrics: the `step` column of the records."""

TABLES_SHOWN = ("steps", "evals", "drift", "events")

MetricRow = dict[str, Any]

_HISTOGRAM_BINS = 32
_FLOPS = ("flops", "flops_forward", "flops_input_gradient", "flops_weight_gradient")
_BYTES = ("comm_bytes", "optimizer_bytes", "peak_memory_bytes")


def metric_rows(tables: Mapping[str, pa.Table], total_elements: int) -> list[MetricRow]:
    """Metrics of the given rows of records, merged by step and in the order of steps.

    Args:
        tables: Rows of each of `TABLES_SHOWN`.
        total_elements: Number of parameter entries of the run.

    Returns:
        Name to value, `AXIS` included. Numbers, but for ``drift/histogram``: counts and bin edges.
    """
    rows: dict[int, MetricRow] = {}
    shown = chain(_steps(tables["steps"], total_elements), _evals(tables["evals"]), _drift(tables["drift"]), _events(tables["events"]))
    for step, values in shown:
        rows.setdefault(step, {AXIS: step}).update((metric_name(name), value) for name, value in values.items() if value is not None)
    return [rows[step] for step in sorted(rows)]


def metric_name(name: str) -> str:
    """The name with every part between slashes made an identifier, which W&B can sort and plot; names that then agree fall together."""
    parts = (re.sub(r"[^A-Za-z0-9_]", "_", part) for part in name.split("/"))
    return "/".join(part if re.match("[A-Za-z_]", part) else f"_{part}" for part in parts)


def summary_values(end: RunEnd | None) -> MetricRow:
    """How a run ended, what it cost, and its last and best metrics; None: it was killed before it could say so.

    A completed run has its last metrics at the budget too, under this name; a dashboard that plots those shows no partial value.
    """
    if end is None:
        return {"status": "failed", "reason": "the run was killed: its records have no end"}
    words = ("last", "at_budget") if end.status is Status.COMPLETED else ("last",)
    costs = ("wall_s", "train_s", "worker_s", "updates", "flops", "mean_active", "mean_active_fraction", *_BYTES)
    return {
        "status": end.status.value,
        "reason": end.reason,
        "steps": end.steps,
        **{f"cost/{name}": value for name in costs if (value := getattr(end, name)) is not None},
        **{f"{word}/{metric_name(name)}": value for word in words for name, value in end.final.items()},
        **{f"best/{metric_name(name)}": value for name, value in end.best.items()},
    }


def _steps(table: pa.Table, total_elements: int) -> Iterator[tuple[int, MetricRow]]:
    for row in table.to_pylist():
        yield (
            row["step"],
            {
                "train/loss": row["loss"],
                "train/lr": row["lr"],
                "train/grad_norm": row["grad_norm"],
                "freeze/active_elements": row["active_elements"],
                "freeze/active_fraction": row["active_elements"] / total_elements if total_elements else None,
                "perf/step_s": row["step_s"],
                "perf/samples_per_s": row["samples"] / row["step_s"] if row["step_s"] else None,
                **{f"perf/{name}": row[name] for name in (*_FLOPS, *_BYTES)},
            },
        )


def _evals(table: pa.Table) -> Iterator[tuple[int, MetricRow]]:
    for row in table.to_pylist():
        yield row["step"], {f"{row['split']}/{row['metric']}": row["value"], f"{row['split']}/eval_s": row["eval_s"]}


def _drift(table: pa.Table) -> Iterator[tuple[int, MetricRow]]:
    for (step, _), update in groupby(table.to_pylist(), key=lambda row: (row["step"], row["update"])):
        distances = np.array([row["distance"] for row in update if row["distance"] is not None])
        if distances.size:
            statistics = {name: float(getattr(np, name)(distances)) for name in ("mean", "median", "min", "max")}
            counts, edges = np.histogram(distances[np.isfinite(distances)], bins=_HISTOGRAM_BINS)
            yield step, {**{f"drift/{name}": value for name, value in statistics.items()}, "drift/histogram": (counts, edges)}


def _events(table: pa.Table) -> Iterator[tuple[int, MetricRow]]:
    for row in table.to_pylist():
        shown = ("threshold", "frozen_groups", "frozen_elements", "active_groups", "decide_s")
        yield row["step"], {f"freeze/{name}": row[name] for name in shown}
