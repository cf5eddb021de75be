"""Reads W&B's offline files: a LevelDB log (7-byte file header, blocks of 32 KiB, 7-byte chunk headers) of protobuf records."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_FILE_HEADER = b":W&B"
_FILE_HEADER_BYTES = 7
_BLOCK_BYTES = 32 * 1024
_CHUNK = struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What an offline file says about a run.

    Attributes:
        kinds: Kinds of all records, in order.
        config: Configuration of the run record, which is written before anything is logged.
        history: One dictionary per call of `log`.
        axes: Metric name (or glob) to the metric it is drawn over.
    """

    run: Any = None
    kinds: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


def offline_runs(directory: Path) -> dict[str, OfflineRun]:
    """By run, what a study's mirror holds; each run is there once. Without the one that sums up the study."""
    files = [read_offline_run(path) for path in sorted((directory / "wandb").glob("offline-run-*/*.wandb"))]
    found = [file for file in files if file.run.job_type != "study"]
    by_name = {run.run.display_name: run for run in found}
    assert len(by_name) == len(found)
    return by_name


def read_offline_run(path: Path) -> OfflineRun:
    """All whole records of an offline file."""
    found = OfflineRun()
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        found.kinds.append(kind)
        if kind == "run":
            found.run = record.run
            found.config.update(_items(record.run.config.update))
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary.update(_items(record.summary.update))
        elif kind == "metric":
            found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[Any]:
    assert data.startswith(_FILE_HEADER), data[:_FILE_HEADER_BYTES]
    position, pending = _FILE_HEADER_BYTES, b""
    while position + _CHUNK.size <= len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        _, length, kind = _CHUNK.unpack_from(data, position)
        if left < _CHUNK.size or (length, kind) == (0, 0):  # the rest of a block is padding
            position += left
            continue
        chunk = data[position + _CHUNK.size : position + _CHUNK.size + length]
        if len(chunk) < length:
            return  # the writer was killed
        position += _CHUNK.size + length
        pending = chunk if kind in (_FULL, _FIRST) else pending + chunk
        if kind in (_FULL, _LAST):
            yield wandb_internal_pb2.Record.FromString(pending)
