"""The tables of a study's records: Arrow schemas, and how an event becomes rows. Columns are stable ids; docs/records.md describes them.

Layout under a study's directory::

    study.json                                   the manifest (records/manifest.py)
    records/<table>/<run>/part-00000.parquet     one file per flush, zstd, whole or absent

Every file carries `fat_ray.schema` (version) and `fat_ray.table` in its Arrow metadata.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from fat_ray.events import Drift, Eval, Event, Freeze, RunEnd, RunStart, Step

SCHEMA_VERSION = "1.0"
"""major.minor: a reader refuses a newer major and ignores columns of a newer minor."""

_RUN = pa.field("run", pa.string(), nullable=False)
_TIME = pa.timestamp("us", tz="UTC")


def _schema(table: str, *columns: tuple[str, pa.DataType]) -> pa.Schema:
    metadata = {"fat_ray.schema": SCHEMA_VERSION, "fat_ray.table": table}
    return pa.schema([_RUN, *(pa.field(name, kind) for name, kind in columns)], metadata=metadata)


TABLES: dict[str, pa.Schema] = {
    # One row per run, written when it starts. trial is null for baselines; *_json hold plain JSON.
    "runs": _schema(
        "runs",
        ("study", pa.string()),
        ("trial", pa.int32()),
        ("seed", pa.int64()),
        ("role", pa.string()),
        ("label", pa.string()),
        ("policy", pa.string()),
        ("params_json", pa.string()),
        ("spec_json", pa.string()),
        ("environment_json", pa.string()),
        ("num_groups", pa.int32()),
        ("total_elements", pa.int64()),
        ("started_at", _TIME),
    ),
    # One row per group, in network order; `group` is its id in all other tables.
    "groups": _schema(
        "groups",
        ("group", pa.int32()),
        ("name", pa.string()),
        ("layer", pa.string()),
        ("kind", pa.string()),
        ("elements", pa.int64()),
    ),
    "steps": _schema(
        "steps",
        ("step", pa.int32()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("grad_norm", pa.float64()),
        ("active_elements", pa.int64()),
        ("samples", pa.int32()),
        ("flops", pa.float64()),
        ("step_s", pa.float64()),
    ),
    # One row per split and metric.
    "evals": _schema(
        "evals",
        ("step", pa.int32()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("eval_s", pa.float64()),
    ),
    # One row per update and group; distance, smoothed and score are null where not measured.
    "drift": _schema(
        "drift",
        ("step", pa.int32()),
        ("update", pa.int32()),
        ("group", pa.int32()),
        ("distance", pa.float64()),
        ("smoothed", pa.float64()),
        ("score", pa.float64()),
        ("active", pa.bool_()),
    ),
    # One row per decision, also when it froze nothing.
    "events": _schema(
        "events",
        ("step", pa.int32()),
        ("event", pa.int32()),
        ("frozen_groups", pa.int32()),
        ("frozen_elements", pa.int64()),
        ("active_elements", pa.int64()),
        ("active_groups", pa.int32()),
        ("threshold", pa.float64()),
        ("limited_by", pa.string()),
        ("decide_s", pa.float64()),
    ),
    # One row per group frozen.
    "freezes": _schema("freezes", ("step", pa.int32()), ("event", pa.int32()), ("group", pa.int32()), ("elements", pa.int64())),
    # One row per run, written when it ends, however it ends.
    "ends": _schema(
        "ends",
        ("status", pa.string()),
        ("reason", pa.string()),
        ("steps", pa.int32()),
        ("wall_s", pa.float64()),
        ("train_s", pa.float64()),
        ("worker_s", pa.float64()),
        ("updates", pa.int64()),
        ("flops", pa.float64()),
        ("mean_active", pa.float64()),
        ("mean_active_fraction", pa.float64()),
        ("final_json", pa.string()),
        ("best_json", pa.string()),
    ),
}

Row = dict[str, Any]


def rows(event: Event, start: RunStart) -> Iterator[tuple[str, Row]]:
    """The rows of an event as (table, row); the `run` column is left to the writer.

    Args:
        event: What happened.
        start: The first event of the same run, which knows the groups.
    """
    match event:
        case RunStart():
            yield from _start_rows(event)
        case Step():
            yield "steps", asdict(event)
        case Eval():
            for metric, value in event.metrics.items():
                yield "evals", {"step": event.step, "split": event.split, "metric": metric, "value": value, "eval_s": event.eval_s}
        case Drift():
            for group, (distance, smoothed, score, active) in enumerate(
                zip(event.distance, event.smoothed, event.score, event.active, strict=True)
            ):
                yield (
                    "drift",
                    {
                        "step": event.step,
                        "update": event.update,
                        "group": group,
                        "distance": distance,
                        "smoothed": smoothed,
                        "score": score,
                        "active": active,
                    },
                )
        case Freeze():
            yield "events", {**asdict(event), "frozen_groups": len(event.frozen)}
            for group in event.frozen:
                elements = start.groups[group].elements
                yield "freezes", {"step": event.step, "event": event.event, "group": group, "elements": elements}
        case RunEnd():
            row = asdict(event)
            final, best = row.pop("final"), row.pop("best")
            yield "ends", {**row, "status": event.status.value, "final_json": json.dumps(final), "best_json": json.dumps(best)}


def _start_rows(start: RunStart) -> Iterator[tuple[str, Row]]:
    yield (
        "runs",
        {
            "study": start.study,
            "trial": start.trial,
            "seed": start.seed,
            "role": start.role,
            "label": start.label,
            "policy": start.spec["freeze"]["policy"],
            "params_json": json.dumps(dict(start.params)),
            "spec_json": json.dumps(start.spec),
            "environment_json": json.dumps(start.environment),
            "num_groups": len(start.groups),
            "total_elements": start.total_elements,
            "started_at": start.started_at,
        },
    )
    for group, info in enumerate(start.groups):
        yield "groups", {"group": group, **asdict(info)}
