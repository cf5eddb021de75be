"""Checkpoints on disk: written in a directory beside their place, sealed by a manifest with the checksum of every file, then renamed.

Layout under a study's directory::

    checkpoints/<run>/step-00000123/manifest.json   the seal: format, version, run, step, and bytes and SHA-256 of every other file

A directory of another name, or without its seal, does not exist for a reader.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fat_ray.errors import RecordError
from fat_ray.records.files import adopt_mode, sync, sync_all

FORMAT = "fat_ray checkpoint"
VERSION = "1.0"
"""major.minor: a newer major is refused."""
MANIFEST = "manifest.json"
STATE = "state.json"
"""What a checkpoint says in plain words: see `engine.checkpoint`."""


def runs_with_checkpoints(directory: str | Path) -> list[str]:
    """Ids of the runs of a study that have a checkpoint, whole or not, sorted."""
    return sorted({path.parent.name for path in (Path(directory) / "checkpoints").glob("*/step-*")})


def checkpoints(directory: str | Path, run: str) -> list[Path]:
    """The checkpoints of a run, the newest first; whether they are whole is for `check` to say."""
    found = [path for path in _place(directory, run).glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were done when it was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_path(directory: str | Path, run: str, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return _place(directory, run) / f"step-{step:08d}"


def temporary_path(checkpoint: Path) -> Path:
    """Where a checkpoint is written before it is sealed; the same for all ranks."""
    return checkpoint.with_name(f".{checkpoint.name}.tmp")


def begin(checkpoint: Path) -> None:
    """Makes the empty directory that the ranks write to."""
    shutil.rmtree(temporary_path(checkpoint), ignore_errors=True)
    temporary_path(checkpoint).mkdir(parents=True)


def seal(checkpoint: Path, run: str) -> None:
    """Makes what the ranks have written a checkpoint, in one step; one that lies there already, damaged, gives way."""
    temporary = temporary_path(checkpoint)
    for path in temporary.iterdir():
        adopt_mode(path)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(temporary.iterdir())}
    manifest = {"format": FORMAT, "version": VERSION, "run": run, "step": step_of(checkpoint), "files": files}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
    sync_all([*temporary.iterdir(), temporary])
    remove(checkpoint)
    temporary.rename(checkpoint)
    sync(checkpoint.parent)


def prune(directory: str | Path, run: str, keep: int) -> None:
    """Removes all but the newest checkpoints of a run, and what killed writers left. Training need not wait until the disk is done."""
    for checkpoint in checkpoints(directory, run)[keep:]:
        _take_away(checkpoint)
    left = list(_place(directory, run).glob(".step-*.tmp"))
    threading.Thread(target=_delete, args=(left,), name="prune").start()


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def check(checkpoint: Path, run: str) -> None:
    """Reads a checkpoint from end to end.

    Raises:
        RecordError: It is damaged, or belongs to another run.
        NewerCheckpointError: A newer program wrote it.
    """
    manifest = _manifest(checkpoint)
    if manifest["run"] != run or manifest["step"] != step_of(checkpoint):
        raise RecordError(f"{checkpoint} is not that of {run} at this step: it says {manifest['run']}, step {manifest['step']}")
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        try:
            size = path.stat().st_size
            whole = size == expected["bytes"] and _digest(path) == expected["sha256"]
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error.strerror or error}") from error
        if not whole:
            raise RecordError(f"{path} is damaged: {size} bytes that are not the {expected['bytes']} that were written")


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint, if it is there. Takes its name away first: a half removed one has none."""
    if checkpoint.exists():
        shutil.rmtree(_take_away(checkpoint), ignore_errors=True)


def _take_away(checkpoint: Path) -> Path:
    """Takes the name of a checkpoint away; returns where it is."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    return checkpoint.rename(gone)


def forget(directory: str | Path, run: str) -> None:
    """Removes all checkpoints of a run, and what an earlier call that was killed left; their names go first.

    Raises:
        OSError: They are still there.
    """
    place = _place(directory, run)
    gone = place.with_name(f".{run}.gone.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    if place.exists():
        place.rename(gone)
        shutil.rmtree(gone)


class NewerCheckpointError(RecordError):
    """A checkpoint that this program is too old to read."""


def _manifest(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        known = manifest["format"] == FORMAT and isinstance(manifest["files"], dict) and {"run", "step", "version"} <= manifest.keys()
        major = int(str(manifest["version"]).partition(".")[0])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{checkpoint} is not a whole checkpoint: {path.name}: {type(error).__name__}: {error}") from error
    if not known:
        raise RecordError(f"{checkpoint} is not a checkpoint of fat_ray")
    if major > int(VERSION.partition(".")[0]):
        raise NewerCheckpointError(
            f"{checkpoint} has version {manifest['version']}, this program reads up to {VERSION}: use a newer fat_ray"
        )
    return dict(manifest)


def _place(directory: str | Path, run: str) -> Path:
    return Path(directory) / "checkpoints" / run


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
