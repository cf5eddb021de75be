"""Recordings of runs that were never trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fat_ray.events import Drift, Freeze, GroupInfo, Layers, RunStart
from fat_ray.records.parquet import ParquetSink
from fat_ray.replay.recording import Costs, Recording
from fat_ray.rules import Bools, Floats
from fat_ray.spec.run import RunSpec, merge
from fat_ray.spec.study import as_json
from tests.support.runs import end, step

STEPS = 12


def recording_of(
    distance: Floats,
    *,
    steps: int,
    window: int = 1,
    elements: list[int] | None = None,
    active: Bools | None = None,
    dead: Bools | None = None,
    costs: Costs | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Recording:
    """A run of which these distances, (updates, groups), were recorded; NaN is what was not measured. A group is a layer of its own."""
    sizes = elements or [10] * distance.shape[1]
    base = {"fisher": {"every": window}, "train": {"steps": steps}, "freeze": {"every": 2, "warmup_steps": 0}}
    return Recording(
        run="none-s0",
        seed=0,
        spec=RunSpec.model_validate(merge(base, spec or {})),
        steps=steps,
        groups=[GroupInfo(f"l{i}", f"l{i}", "Linear", size) for i, size in enumerate(sizes)],
        updates=np.arange(len(distance)) * window,
        distance=distance,
        active=np.ones(distance.shape, np.bool_) if active is None else active,
        dead=np.zeros(len(sizes), np.bool_) if dead is None else dead,
        costs=costs,
    )


def write_drift_run(directory: Path, run: str, distance: Floats, frozen_at: Sequence[int] = (), **spec: Any) -> None:
    """The records of a run of 12 steps that measured these distances every other step, (6, groups), and froze groups at these steps.

    A group is a layer of its own with 10 entries, and its forward costs 100 operations. `spec` are sections of the run.
    """
    number = distance.shape[1]
    base = {"fisher": {"every": 2}, "train": {"steps": STEPS}, "freeze": {"every": 2, "warmup_steps": 0, "floor": 0.0}}
    at = np.array(frozen_at or [STEPS] * number)
    sink = ParquetSink(directory, run)
    sink.emit(
        RunStart(
            run=run,
            study="drifting",
            trial=None,
            seed=int(run[-1]),
            role="baseline" if spec.get("freeze", {}).get("policy") == "none" else "search",
            label="",
            params={},
            spec=as_json(RunSpec.model_validate(merge(base, spec))),
            environment={},
            groups=[GroupInfo(f"l{i}", f"l{i}", "Linear", 10) for i in range(number)],
            started_at=datetime(2026, 1, 2, tzinfo=UTC),
        )
    )
    for event, number_frozen in enumerate(sorted(set(at.tolist()) - {STEPS})):
        chosen = np.flatnonzero(at == number_frozen).tolist()
        left = 10 * int((at > number_frozen).sum())
        sink.emit(Freeze(number_frozen, event, chosen, 10 * len(chosen), left, left // 10, 0.1, "", 0.001))
    for number_step in range(STEPS):
        flops = {"flops_forward": 100.0 * number, "flops_input_gradient": 100.0 * (number - 1), "flops_weight_gradient": 100.0 * number}
        sink.emit(replace(step(number_step), active_elements=10 * int((at > number_step).sum()), **flops))
    sink.emit(Layers([f"l{i}" for i in range(number)], [100.0] * number))
    for update, row in enumerate(distance):
        active = (at >= 2 * update).tolist()
        known = [None if np.isnan(value) or not on else float(value) for value, on in zip(row, active, strict=True)]
        sink.emit(Drift(2 * update, update, known, [None if value is None else 0.0 for value in known], known, known, active))
    sink.emit(replace(end(), steps=STEPS))
    sink.close()
