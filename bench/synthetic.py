"""A study as thousands of runs would leave it, made up: for benches of what reads records."""

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fat_ray.records.manifest import Manifest
from fat_ray.records.schema import TABLES
from fat_ray.spec.study import StudySpec, as_json

Row = dict[str, Any]
Columns = dict[str, Any]
KINDS = ("Conv2d", "BatchNorm2d", "Linear")
METRICS = ("f1", "iou", "loss", "constant_f1")
PARTS = {"steps": 2, "evals": 2, "drift": 2}
"""Flushes whose parts a run leaves, of the tables that grow; the others have one."""


@dataclass(frozen=True)
class Size:
    """How large a study is: each run has `groups` times `updates` rows of drift, and five steps per update."""

    runs: int
    seeds: int = 5
    groups: int = 200
    updates: int = 100

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return 5 * self.updates


def study_spec(size: Size) -> StudySpec:
    """A search over three settings, each with several seeds, and full fine-tuning."""
    fields = {
        "name": "synthetic",
        "train": {"steps": size.steps, "evaluate_every": size.steps // 10},
        "search": {
            "freeze.threshold": {"type": "float", "low": -1.2, "high": 0.2},
            "fisher.every": {"type": "categorical", "choices": [2, 4, 8]},
            "freeze.every": {"type": "int", "low": 8, "high": 24, "step": 4},
        },
        "budget": {"trials": size.runs // size.seeds - 1},
        "seeds": list(range(size.seeds)),
        "baselines": ["none"],
    }
    return StudySpec.model_validate_json(json.dumps(fields))


def write_study(directory: Path, size: Size) -> int:
    """Writes the study as that many runs would leave it, in small parts. Returns its bytes.

    Raises:
        SystemExit: The disk has not space for it twice: loose and compacted.
    """
    directory.mkdir(parents=True)
    spec = study_spec(size)
    manifest = Manifest(
        name=spec.name,
        launch="0badcafe",
        created_at=datetime.now(UTC),
        fat_ray="0",
        git_commit=None,
        git_dirty=None,
        command=[],
        spec=as_json(spec),
    )
    (directory / "study.json").write_text(manifest.model_dump_json())
    total = 0
    for number in range(size.runs):
        trial, seed = divmod(number, size.seeds)
        for table, columns in run_tables(spec, size, trial - 1, seed).items():
            total += write_parts(directory / "records" / table, table, columns)
        if number == 4:
            check_space(directory, 2 * total // 5 * size.runs)
    return total


def check_space(directory: Path, needed: int) -> None:
    """Refuses a study that would fill the disk."""
    free = shutil.disk_usage(directory).free
    if free < needed + 2**30:
        raise SystemExit(f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free: take fewer --runs")


def write_parts(folder: Path, table: str, columns: Columns) -> int:
    """Writes the rows of a run as its flushes would, without waiting for the disk. Returns the bytes."""
    schema, run = TABLES[table], columns["run"]
    length = len(next(value for name, value in columns.items() if name != "run"))
    given = {**columns, "run": np.full(length, run)}
    arrays = [pa.array(given[field.name]).cast(field.type) if field.name in given else pa.nulls(length, field.type) for field in schema]
    rows = pa.Table.from_arrays(arrays, schema=schema)
    (folder / run).mkdir(parents=True)
    parts, written = min(PARTS.get(table, 1), max(length, 1)), 0
    for part in range(parts if length else 0):
        path = folder / run / f"part-{part:05d}.parquet"
        at = [length * edge // parts for edge in (part, part + 1)]
        pq.write_table(rows.slice(at[0], at[1] - at[0]), path, compression="zstd", write_page_checksum=True)
        written += path.stat().st_size
    return written


def run_tables(spec: StudySpec, size: Size, trial: int, seed: int) -> dict[str, Columns]:
    """The rows of one run; trial -1 is full fine-tuning."""
    rng = np.random.default_rng((trial + 1, seed))
    full, run = trial < 0, f"none-s{seed}" if trial < 0 else f"t{trial:04d}-s{seed}"
    elements = np.full(size.groups, 1000)
    frozen_at = np.where(rng.random(size.groups) < 0.5, rng.integers(size.steps // 5, size.steps, size.groups), size.steps)
    frozen_at = np.full(size.groups, size.steps) if full else frozen_at
    steps = np.arange(size.steps)
    active = 1000 * (frozen_at[None, :] > steps[:, None]).sum(axis=1)
    share = active / elements.sum()
    params = {} if full else setting(trial)
    document = as_json(spec.run)
    for key, value in params.items():
        part, _, name = key.partition(".")
        document[part][name] = value
    tables = {
        "groups": {
            "group": np.arange(size.groups),
            "name": [f"block.{group // 4}.layer[{group % 4}]" for group in range(size.groups)],
            "layer": [f"block.{group // 4}.layer" for group in range(size.groups)],
            "kind": [KINDS[group // 4 % 3] for group in range(size.groups)],
            "elements": elements,
        },
        "runs": started(document, params, trial, seed, size),
        "steps": step_columns(rng, steps, active, share),
        "evals": eval_columns(rng, size, float(share.mean()), full=full),
        "drift": drift_columns(rng, size, frozen_at),
        **decisions(frozen_at, size),
        "ends": ended(size, active, share),
    }
    return {table: {"run": run, **columns} for table, columns in tables.items()}


def setting(trial: int) -> Row:
    """What a trial was suggested."""
    rng = np.random.default_rng(trial)
    return {
        "freeze.threshold": float(rng.uniform(-1.2, 0.2)),
        "fisher.every": int(rng.choice([2, 4, 8])),
        "freeze.every": int(rng.choice([8, 12, 16, 20, 24])),
    }


def started(document: Row, params: Row, trial: int, seed: int, size: Size) -> Columns:
    """The row of `runs`."""
    row = {
        "study": "synthetic",
        "trial": trial if trial >= 0 else None,
        "seed": seed,
        "role": "search" if trial >= 0 else "baseline",
        "label": "" if trial >= 0 else "none",
        "policy": "fisher_drift" if trial >= 0 else "none",
        "params_json": json.dumps(params),
        "spec_json": json.dumps(document),
        "environment_json": json.dumps({"world_size": 2, "versions": {"python": "3.11", "torch": "2.13"}}),
        "num_groups": size.groups,
        "total_elements": 1000 * size.groups,
        "started_at": datetime.now(UTC),
    }
    return {name: [row.get(name)] for name in TABLES["runs"].names if name != "run"}


def step_columns(rng: np.random.Generator, steps: Any, active: Any, share: Any) -> Columns:
    """The rows of `steps`."""
    noise = 1 + 0.05 * rng.standard_normal(len(steps))
    columns = {
        "step": steps,
        "loss": noise * np.exp(-steps / len(steps)),
        "lr": 1e-3 * (1 - steps / len(steps)),
        "grad_norm": noise,
        "active_elements": active,
        "samples": np.full(len(steps), 8),
        "flops_forward": np.full(len(steps), 1e9),
        "flops_input_gradient": 1e9 * share,
        "flops_weight_gradient": 1e9 * share,
        "comm_bytes": 4 * active,
        "optimizer_bytes": 8 * active,
        "peak_memory_bytes": 10**8 + 16 * active,
        "step_s": 0.1 * noise * (0.5 + 0.5 * share),
    }
    columns["flops"] = 1e9 + 2e9 * share
    return columns


def eval_columns(rng: np.random.Generator, size: Size, share: float, *, full: bool) -> Columns:
    """The rows of `evals`: ten of the validation split, one of the others."""
    at = [("val", size.steps * number // 10) for number in range(1, 11)] + [("test", size.steps), ("zero_shot", size.steps)]
    reached = 0.6 - 0.1 * (1 - share) ** 2 + 0.01 * rng.standard_normal() + 0.002 * full
    values = [reached * (1 - np.exp(-5 * step / size.steps)) for _, step in at]
    return {
        "step": np.repeat([step for _, step in at], len(METRICS)),
        "split": [split for split, _ in at for _ in METRICS],
        "metric": list(METRICS) * len(at),
        "value": np.array([[value, value / (2 - value), 1 - value, 0.03] for value in values]).ravel(),
        "eval_s": np.full(len(METRICS) * len(at), 0.5),
    }


def drift_columns(rng: np.random.Generator, size: Size, frozen_at: Any) -> Columns:
    """The rows of `drift`: measured where the group is active, but for the first update."""
    update = np.repeat(np.arange(size.updates), size.groups)
    group = np.tile(np.arange(size.groups), size.updates)
    step = 5 * update
    active = frozen_at[group] > step
    unknown = ~active | (update == 0)
    distance = 0.3 * np.exp(-update / size.updates * (1 + group / size.groups)) + 0.02 * rng.standard_normal(len(update))
    smoothed = distance.reshape(size.updates, -1).cumsum(axis=0) / np.arange(1, size.updates + 1)[:, None]

    def measured(values: Any) -> pa.Array:
        return pa.array(values, mask=unknown)

    return {
        "step": step,
        "update": update,
        "group": group,
        "distance": measured(distance),
        "noise": measured(np.zeros(len(update))),
        "smoothed": measured(smoothed.ravel()),
        "score": measured(smoothed.ravel()),
        "active": active,
    }


def decisions(frozen_at: Any, size: Size) -> dict[str, Columns]:
    """The rows of `freezes` and `events`: a decision at every twentieth step."""
    frozen = np.flatnonzero(frozen_at < size.steps)
    event = frozen_at[frozen] // 20
    events = np.arange(size.steps // 20)
    count = np.bincount(event, minlength=len(events))
    left = size.groups - count.cumsum()
    freezes = {"step": 20 * event, "event": event, "group": frozen, "elements": np.full(len(frozen), 1000)}
    happened = {
        "step": 20 * events,
        "event": events,
        "frozen_groups": count,
        "frozen_elements": 1000 * count,
        "active_elements": 1000 * left,
        "active_groups": left,
        "threshold": np.full(len(events), 0.2),
        "limited_by": [""] * len(events),
        "decide_s": np.full(len(events), 0.001),
    }
    return {"freezes": freezes, "events": happened}


def ended(size: Size, active: Any, share: Any) -> Columns:
    """The row of `ends`."""
    train_s = float((0.1 * (0.5 + 0.5 * share)).sum())
    row = {
        "status": "completed",
        "reason": "",
        "steps": size.steps,
        "wall_s": 1.2 * train_s,
        "train_s": train_s,
        "worker_s": 2.4 * train_s,
        "updates": int(active.sum()),
        "flops": float((1e9 + 2e9 * share).sum()),
        "mean_active": float(active.mean()),
        "mean_active_fraction": float(share.mean()),
        "comm_bytes": int(4 * active.sum()),
        "optimizer_bytes": int(8 * active.max()),
        "peak_memory_bytes": int(10**8 + 16 * active.max()),
        "final_json": "{}",
        "best_json": "{}",
    }
    return {name: [row.get(name)] for name in TABLES["ends"].names if name != "run"}
