"""The tables of a study's records: Arrow schemas, and what an event adds to them. Columns are stable ids; docs/records.md describes them.

Layout under a study's directory::

    study.json                                   the manifest (records/manifest.py)
    records/<table>/<run>/part-00000.parquet     one file per flush, zstd, whole or absent

Every file carries `fat_ray.schema` (version) and `fat_ray.table` in its Arrow metadata.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import pyarrow as pa

from fat_ray.errors import RecordError
from fat_ray.events import Drift, Eval, Event, Freeze, GroupInfo, Layers, Notice, Resumption, RunEnd, RunStart, Step
from fat_ray.records.redact import scrub

SCHEMA_VERSION = "1.2"
"""major.minor: a reader refuses a newer major and ignores columns of a newer minor."""


def check_version(source: object, version: str) -> None:
    """Refuses what a newer program wrote in another way.

    Args:
        source: Where the version stands, for the message.
        version: major.minor as found there.

    Raises:
        RecordError: The version is of a newer major, or none at all.
    """
    major = version.partition(".")[0]
    if not (major.isascii() and major.isdigit()):
        raise RecordError(f"{source} has no schema version such as {SCHEMA_VERSION}: it says {version or 'nothing'}")
    if int(major) > int(SCHEMA_VERSION.partition(".")[0]):
        raise RecordError(f"{source} has schema version {version}, this program reads up to {SCHEMA_VERSION}: use a newer fat_ray")


_RUN = pa.field("run", pa.string(), nullable=False)
_TIME = pa.timestamp("us", tz="UTC")


def _schema(table: str, *columns: tuple[str, pa.DataType]) -> pa.Schema:
    metadata = {"fat_ray.schema": SCHEMA_VERSION, "fat_ray.table": table}
    return pa.schema([_RUN, *(pa.field(name, kind) for name, kind in columns)], metadata=metadata)


TABLES: dict[str, pa.Schema] = {
    # One row per group, in network order; `group` is its id in all other tables.
    "groups": _schema(
        "groups",
        ("group", pa.int32()),
        ("name", pa.string()),
        ("layer", pa.string()),
        ("kind", pa.string()),
        ("elements", pa.int64()),
    ),
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
        ("follow_json", pa.string()),
    ),
    # One row each time that the run went on after an interruption.
    "resumptions": _schema(
        "resumptions", ("step", pa.int32()), ("environment_json", pa.string()), ("note", pa.string()), ("resumed_at", _TIME)
    ),
    # One row per layer, in the order in which the first step used them, written after it; layer is null for products without a weight.
    "layers": _schema("layers", ("place", pa.int32()), ("layer", pa.string()), ("flops_forward", pa.float64())),
    "steps": _schema(
        "steps",
        ("step", pa.int32()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("grad_norm", pa.float64()),
        ("active_elements", pa.int64()),
        ("samples", pa.int32()),
        ("flops", pa.float64()),
        ("flops_forward", pa.float64()),
        ("flops_input_gradient", pa.float64()),
        ("flops_weight_gradient", pa.float64()),
        ("comm_bytes", pa.int64()),
        ("optimizer_bytes", pa.int64()),
        ("peak_memory_bytes", pa.int64()),
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
        ("noise", pa.float64()),
        ("smoothed", pa.float64()),
        ("score", pa.float64()),
        ("active", pa.bool_()),
    ),
    # One row per group frozen.
    "freezes": _schema("freezes", ("step", pa.int32()), ("event", pa.int32()), ("group", pa.int32()), ("elements", pa.int64())),
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
        ("frontier", pa.string()),
    ),
    # What a reader should know, in words.
    "notices": _schema("notices", ("step", pa.int32()), ("topic", pa.string()), ("text", pa.string())),
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
        ("comm_bytes", pa.int64()),
        ("optimizer_bytes", pa.int64()),
        ("peak_memory_bytes", pa.int64()),
        ("final_json", pa.string()),
        ("best_json", pa.string()),
    ),
}
"""In the order in which a flush writes them: who sees a row also finds the rows that it speaks of, and after `ends` nothing is missing."""

ROW_KEYS = {
    "groups": ("group",),
    "runs": (),
    "resumptions": ("resumed_at",),
    "layers": ("place",),
    "steps": ("step",),
    "evals": ("step", "split", "metric"),
    "drift": ("update", "group"),
    "freezes": ("group",),
    "events": ("event",),
    "notices": ("step", "topic", "text"),
    "ends": (),
}
"""What a row is about, besides its run: a run that was started again writes it again, and the later row counts."""

Columns = dict[str, Sequence[Any]]
"""Values by column, all of the same length; a column that is left out is null."""


def columns(event: Event, start: RunStart) -> Iterator[tuple[str, Columns]]:
    """What an event adds to the tables, as (table, columns); the `run` column is left to the writer.

    Args:
        event: What happened.
        start: The first event of the same run, which knows the groups.
    """
    match event:
        case RunStart():
            yield from _start_columns(event)
        case Resumption():
            values = {name: value for name, value in vars(event).items() if name != "environment"}
            yield "resumptions", _row({**values, "environment_json": to_json(event.environment)})
        case Layers():
            yield "layers", {"place": range(len(event.layers)), "layer": event.layers, "flops_forward": event.flops_forward}
        case Step():
            yield "steps", _row({**vars(event), "flops": event.flops})
        case Eval():
            yield "evals", _eval_columns(event)
        case Drift():
            yield "drift", _drift_columns(event, len(start.groups))
        case Freeze():
            yield from _freeze_columns(event, start.groups)
        case Notice():
            yield "notices", _row(vars(event))
        case RunEnd():
            yield "ends", _end_columns(event)


def _row(values: Mapping[str, Any]) -> Columns:
    return {name: (value,) for name, value in values.items()}


def _start_columns(start: RunStart) -> Iterator[tuple[str, Columns]]:
    yield (
        "groups",
        {
            "group": range(len(start.groups)),
            "name": [group.name for group in start.groups],
            "layer": [group.layer for group in start.groups],
            "kind": [group.kind for group in start.groups],
            "elements": [group.elements for group in start.groups],
        },
    )
    yield (
        "runs",
        _row(
            {
                "study": start.study,
                "trial": start.trial,
                "seed": start.seed,
                "role": start.role,
                "label": start.label,
                "policy": start.spec["freeze"]["policy"],
                "params_json": to_json(start.params),
                "spec_json": to_json(start.spec),
                "environment_json": to_json(start.environment),
                "num_groups": len(start.groups),
                "total_elements": start.total_elements,
                "started_at": start.started_at,
                "follow_json": None if start.follow is None else json.dumps([list(event) for event in start.follow]),
            }
        ),
    )


def _eval_columns(event: Eval) -> Columns:
    count = len(event.metrics)
    return {
        "step": (event.step,) * count,
        "split": (event.split,) * count,
        "metric": tuple(event.metrics),
        "value": tuple(event.metrics.values()),
        "eval_s": (event.eval_s,) * count,
    }


def _drift_columns(event: Drift, num_groups: int) -> Columns:
    # A sequence of another length would shift every later row of the buffer.
    assert {len(event.distance), len(event.smoothed), len(event.score), len(event.active)} == {num_groups}, "one value per group"
    return {
        "step": (event.step,) * num_groups,
        "update": (event.update,) * num_groups,
        "group": range(num_groups),
        "distance": event.distance,
        "noise": event.noise,
        "smoothed": event.smoothed,
        "score": event.score,
        "active": event.active,
    }


def _freeze_columns(event: Freeze, groups: Sequence[GroupInfo]) -> Iterator[tuple[str, Columns]]:
    count = len(event.frozen)
    yield (
        "freezes",
        {
            "step": (event.step,) * count,
            "event": (event.event,) * count,
            "group": event.frozen,
            "elements": [groups[group].elements for group in event.frozen],
        },
    )
    values = {name: value for name, value in vars(event).items() if name != "frozen"}
    yield "events", _row({**values, "frozen_groups": count})


def _end_columns(event: RunEnd) -> Columns:
    values = {name: value for name, value in vars(event).items() if name not in ("status", "reason", "final", "best")}
    finite = {"final_json": to_json(_numbers(event.final)), "best_json": to_json(_numbers(event.best))}
    return _row({**values, "status": event.status.value, "reason": scrub(event.reason), **finite})


def _numbers(values: Mapping[str, float]) -> dict[str, float | str]:
    # JSON has no NaN and no infinity: "nan", "inf" and "-inf" stand for them, which float() reads.
    return {name: value if isfinite(value) else str(float(value)) for name, value in values.items()}


def to_json(value: Mapping[str, Any]) -> str:
    """Strict JSON of plain values.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    return json.dumps(dict(value), allow_nan=False)
