"""What W&B is told of a run or a study besides its metrics: configuration, tags, tables, names; plain values, made from the records."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fat_ray.events import RunEnd, RunStart
from fat_ray.records.manifest import MANIFEST, STUDY_TEXT, Manifest
from fat_ray.records.reader import read_table, run_end, run_start
from fat_ray.records.schema import TABLES, to_json

ORIGIN = "fat_ray"
"""Key of the configuration under which stands, as JSON text, what a comparison needs and people have elsewhere."""
END = "records/end"
NAMES = "records/names"
"""Keys of the summary: the run's row of `ends`, and split and metric of each name that had to be changed, as JSON text."""

SCHEDULE_COLUMNS = ("step", "event", "group", "layer", "kind", "elements")
ID_CHARACTERS, TAG_CHARACTERS, NAME_CHARACTERS = 64, 64, 128
"""What W&B takes at most."""

_DIGEST = 8
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.-]")


def shortened(text: str, limit: int) -> str:
    """The text; where it is too long, its beginning and a digest of all of it."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - _DIGEST - 1]}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]}"


def artifact_name(text: str) -> str:
    """A name that W&B takes for an artifact: letters, digits, ``_``, ``.`` and ``-``."""
    return shortened(_FORBIDDEN.sub("_", text), NAME_CHARACTERS)


def run_id(manifest: Manifest, run: str) -> str:
    """The id of a W&B run: the same whenever this launch of the study is mirrored."""
    return shortened(f"{manifest.name}-{run}-{manifest.launch}", ID_CHARACTERS)


def study_run(manifest: Manifest) -> str:
    """Name of the W&B run that sums up the study; no run of a study can have it."""
    return f"{manifest.name} (study)"


def study_id(manifest: Manifest) -> str:
    """Its id."""
    return shortened(f"{manifest.name}-study-{manifest.launch}", ID_CHARACTERS)


def tags(start: RunStart) -> list[str]:
    """Policy and label."""
    return [shortened(tag, TAG_CHARACTERS) for tag in (str(start.spec["freeze"]["policy"]), start.label) if tag]


def run_config(start: RunStart, manifest: Manifest) -> dict[str, Any]:
    """The configuration of a W&B run: `RunStart` without the groups. Parameters are nested, since W&B reads the dots of a key as a path."""
    names = ("study", "run", "trial", "seed", "role", "label", "spec", "environment", "total_elements")
    config = {name: getattr(start, name) for name in names}
    return {**config, "num_groups": len(start.groups), "params": _nested(start.params), ORIGIN: _origin(start, manifest)}


def _origin(start: RunStart, manifest: Manifest) -> str:
    follow = None if start.follow is None else [list(event) for event in start.follow]
    told = {"params": dict(start.params), "started_at": start.started_at.isoformat(), "follow": follow}
    return to_json({**told, "manifest": json.loads(manifest.model_dump_json())})


def study_config(manifest: Manifest) -> dict[str, Any]:
    """The configuration of the W&B run that sums up a study."""
    return {"study": manifest.name, "spec": manifest.spec, "fat_ray_version": manifest.fat_ray, "launch": manifest.launch}


def end_text(end: RunEnd) -> str:
    """The row of `ends`, NaN and infinity as words."""
    numbers = {name: {key: _number(value) for key, value in getattr(end, name).items()} for name in ("final", "best")}
    return to_json({**vars(end), **numbers, "status": end.status.value})


def _number(value: float) -> float | str:
    return value if abs(value) < float("inf") else str(float(value))


def schedule_rows(directory: Path, run: str, start: RunStart) -> list[list[Any]]:
    """The freeze schedule of a run: step, event, group, layer, kind, elements of each frozen group, in order."""
    rows = read_table(directory, "freezes", run).to_pylist()
    groups = [start.groups[row["group"]] for row in rows]
    return [
        [row["step"], row["event"], group.name, group.layer, group.kind, row["elements"]] for row, group in zip(rows, groups, strict=True)
    ]


def write_run_files(directory: Path, run: str, start: RunStart, target: Path) -> None:
    """Puts what the artifact of a run holds into a directory: a Parquet file per table that has rows, and the run's own specification."""
    target.mkdir(parents=True)
    for table in TABLES:
        rows = read_table(directory, table, run)
        if rows.num_rows:
            pq.write_table(rows, target / f"{table}.parquet", compression="zstd", write_page_checksum=True)
    (target / "spec.json").write_text(json.dumps(start.spec, indent=2) + "\n")


def study_files(directory: Path) -> list[Path]:
    """What the artifact of a study holds."""
    return [path for path in (directory / MANIFEST, directory / STUDY_TEXT) if path.exists()]


def study_tables(document: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """The trials of a study, and those on its Pareto front, as columns and rows.

    Args:
        document: The study's picture as `fat_ray.view.document` tells it.
    """
    goals = [goal["metric"] for goal in document["objectives"]]
    keys = sorted({key for trial in document["trials"] for key in trial["setting"]})
    columns = ["trial", *goals, *keys, "state", "seeds_done", "last", "best", "reason"]
    rows = {trial["trial"]: _trial_row(trial, goals, keys) for trial in document["trials"]}
    return {"study/trials": (columns, list(rows.values())), "study/pareto": (columns, [rows[name] for name in document["front"]])}


def _trial_row(trial: Mapping[str, Any], goals: Sequence[str], keys: Sequence[str]) -> list[Any]:
    values = trial["at_budget"] or {}
    setting = [_cell(trial["setting"].get(key)) for key in keys]
    how = [trial[name] for name in ("state", "seeds_done", "last", "best", "reason")]
    return [trial["trial"], *(values.get(goal) for goal in goals), *setting, *how]


def _cell(value: Any) -> str | None:
    """Values of one parameter may be of several types, those of a column may not."""
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def study_summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """How a study stands, for the summary of its W&B run."""
    best = next((trial for trial in document["trials"] if trial["trial"] == document["best_compromise"]), None)
    goals = {} if best is None else {f"best_compromise/{name}": value for name, value in (best["at_budget"] or {}).items()}
    counts = {f"trials/{state}": number for state, number in document["counts"].items()}
    named = {"status": document["state"], "trials/planned": document["planned"], "best_compromise/trial": document["best_compromise"]}
    return {**named, **counts, **goals}


def fingerprint(directory: Path, run: str) -> str:
    """Changes when a run's records do: when it ends, and when it goes on after an interruption."""
    end = run_end(directory, run)
    resumed = read_table(directory, "resumptions", run).num_rows
    steps = end.steps if end is not None else read_table(directory, "steps", run).num_rows
    known = [run_start(directory, run).started_at.isoformat(), resumed, steps, None if end is None else end_text(end)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def study_fingerprint(document: Mapping[str, Any]) -> str:
    """Changes when what is told of a study does, but for the time."""
    known = [document["state"], document["front"], [{**trial, "elapsed_s": 0} for trial in document["trials"]]]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, last = path.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested
