"""The weights of a run as one file that anybody can load into the plain model."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fat_ray.engine.snapshot import MERGED, MODEL
from fat_ray.engine.vault import STATE, check, checkpoints, runs_with_checkpoints
from fat_ray.errors import InputError, OutputError, RecordError
from fat_ray.records.files import adopt_mode, explain, sync
from fat_ray.records.manifest import MANIFEST, read_manifest
from fat_ray.records.reader import run_end, runs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What an exported file holds.

    Attributes:
        run: Whose weights.
        step: After how many optimizer steps.
        steps: Steps of the whole run.
    """

    run: str
    step: int
    steps: int


def export_model(place: Path, out: Path) -> Exported:
    """Writes the state dict of a run's plain model as it is in the newest whole checkpoint, with adapters merged.

    Its keys are those that the model had before anything was frozen. The file's metadata name the study, run, seed, step and the SHA-256
    of the run's specification.

    Args:
        place: A study's directory that holds the checkpoints of one run, or ``<directory>/<run>``.
        out: The safetensors file to write.

    Raises:
        InputError: There is no such run, there are several, or it has no checkpoint.
        OutputError: `out` exists, or cannot be written.
        RecordError: All its checkpoints are damaged.
    """
    if out.exists():
        raise OutputError(f"{out} exists; give --out another name")
    directory, run = _locate(place)
    checkpoint = _newest_whole(directory, run)
    state = json.loads((checkpoint / STATE).read_bytes())
    weights = checkpoint / MERGED if (checkpoint / MERGED).exists() else checkpoint / MODEL
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        save_file(load_file(weights), temporary, _metadata(state))
        adopt_mode(temporary)
        sync(temporary)
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {out}: {explain(error, out) if isinstance(error, OSError) else error}") from error
    return Exported(run, state["step"], state["job"]["spec"]["train"]["steps"])


def _metadata(state: dict[str, Any]) -> dict[str, str]:
    job = state["job"]
    spec = json.dumps(job["spec"], sort_keys=True).encode()
    named = {name: str(job[name]) for name in ("study", "run", "seed")}
    return {"format": "pt", **named, "step": str(state["step"]), "spec_sha256": hashlib.sha256(spec).hexdigest()}


def _locate(place: Path) -> tuple[Path, str]:
    """Directory of the study, and the run."""
    if not (place / MANIFEST).is_file():
        if (place.parent / MANIFEST).is_file():
            return place.parent, _known(place.parent, place.name)
        raise InputError(f"{place} is neither a study's directory, which holds {MANIFEST}, nor DIR/RUN with a run of one")
    found = runs_with_checkpoints(place)
    if len(found) > 1:
        raise InputError(
            f"{place} holds checkpoints of {len(found)} runs; give one of them: {', '.join(str(place / run) for run in found)}"
        )
    if not found:
        raise InputError(f"{place} holds no checkpoint; runs save them unless train.checkpoint.every is 0")
    return place, found[0]


def _known(directory: Path, run: str) -> str:
    found = runs_with_checkpoints(directory)
    if run in found:
        return run
    held = f"it holds those of {', '.join(found) or 'none'}"
    if run in runs(directory):
        raise InputError(f"{directory} holds no checkpoint of run {run}: {_why_not(directory, run)}; {held}")
    raise InputError(f"{directory} holds no checkpoint of a run {run}; {held}")


def _why_not(directory: Path, run: str) -> str:
    """Why a run that has records has no checkpoint."""
    study = read_manifest(directory).spec
    checkpoint = study["train"].get("checkpoint", {})
    if checkpoint.get("every") == 0:
        return "train.checkpoint.every is 0"
    if run_end(directory, run) is None:
        return "it has not come to its first one yet"
    if checkpoint.get("retain") == "front" and (study["search"] or study["baselines"]):
        return (
            "a search keeps those of its Pareto front and of trials that may go on; to keep all, launch it with "
            "--set train.checkpoint.retain=all"
        )
    return "it ended before its first one"


def _newest_whole(directory: Path, run: str) -> Path:
    problems = []
    for checkpoint in checkpoints(directory, run):
        try:
            check(checkpoint, run)
        except RecordError as error:
            problems.append(str(error))
            log.warning("passed over a checkpoint: %s", error)
        else:
            return checkpoint
    raise RecordError(f"no checkpoint of {run} is whole: {'; '.join(problems)}")
