"""Runs that die at any event, as a killed process does: what was not on the disk is lost."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fat_ray.engine.loop import train
from fat_ray.engine.request import Request
from fat_ray.engine.vault import checkpoints
from fat_ray.events import Event, RunEnd
from fat_ray.fisher.reduce import world
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.reader import read_table
from fat_ray.records.schema import TABLES
from fat_ray.records.sink import NullSink, Sink
from fat_ray.spec.job import RunJob
from tests.support.jobs import task_of

CPU = torch.device("cpu")
CLOCKS = {"step_s", "eval_s", "decide_s", "wall_s", "train_s", "worker_s", "started_at", "peak_memory_bytes"}


class Killed(BaseException):
    """No Exception: nobody may handle it as a failure of the run."""


class MortalSink:
    """Passes everything on until it dies, then nothing.

    Args:
        sink: The records.
        lifetime: Number of events after which it dies; None: never.
    """

    def __init__(self, sink: Sink, lifetime: int | None) -> None:
        self._sink, self._lifetime = sink, lifetime
        self.num_events = 0
        self.dead = False

    def emit(self, event: Event) -> None:
        if self.num_events == self._lifetime:
            self.die()
        self.num_events += 1
        self._sink.emit(event)

    def die(self) -> None:
        self.dead = True
        raise Killed

    def flush(self) -> None:
        if not self.dead:
            self._sink.flush()

    def close(self) -> None:
        self.flush()

    def position(self) -> dict[str, int]:
        return self._sink.position()

    def reaches(self, position: Mapping[str, int]) -> bool:
        return self._sink.reaches(position)

    def rewind(self, position: Mapping[str, int]) -> bool:
        return self._sink.rewind(position)


def train_until(job: RunJob, lifetime: int | None = None, requests: Sequence[Request | None] = ()) -> RunEnd | None:
    """Trains on this rank as a worker does; None when it died. Goes on with what is there.

    `requests` are what the run is asked for at its next steps.
    """
    asked = iter(requests)
    sink: Sink = ParquetSink(job.directory, job.run) if world()[0] == 0 else NullSink()
    mortal = MortalSink(sink, lifetime)
    job = job.model_copy(update={"resume": True})
    try:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(job.seed)
        return train(job, task_of(job), mortal, device=CPU, stop_request=lambda: next(asked, None), on_evaluation=lambda _: None)
    except Killed:
        mortal.dead = True
        return None


def outcome(job: RunJob) -> dict[str, Any]:
    """All that a run leaves, but for what a clock or a meter of memory says and how often it was interrupted."""
    rows = {table: list(_rows(job, table)) for table in TABLES if table != "resumptions"}
    newest = checkpoints(job.directory, job.run)[0]
    return {**rows, **{path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}}


def _rows(job: RunJob, table: str) -> Iterator[dict[str, Any]]:
    for row in read_table(job.directory, table, job.run).to_pylist():
        yield {name: repr(value) for name, value in row.items() if name not in CLOCKS}


def num_resumptions(directory: str | Path, run: str) -> int:
    return int(read_table(directory, "resumptions", run).num_rows)
