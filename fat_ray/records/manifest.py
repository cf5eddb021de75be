"""The manifest of a study, `study.json`, and the making of a study's directory."""

import json
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, ValidationError

from fat_ray import __version__
from fat_ray.errors import OutputError, RecordError, SpecError
from fat_ray.records.environment import git_state
from fat_ray.records.files import explain, free_bytes, mebibytes, write_atomic
from fat_ray.records.place import Place, place_of
from fat_ray.records.redact import scrub, secrets_in
from fat_ray.records.schema import SCHEMA_VERSION, check_version
from fat_ray.spec.base import Name, Strict
from fat_ray.spec.study import StudySpec, as_json

MANIFEST = "study.json"
STUDY_TEXT = "study.yaml"
MIN_FREE_BYTES = 64 * 2**20
"""Records and the W&B mirror of a study of a few hundred runs."""

# Where the study ran is not part of what it was.
_LOCAL_OPTIONS = ("--address", "--out")

# What status, compare and report read of a study; minor versions may add keys, so the whole is not validated.
_READ_KEYS = (
    "task.name",
    "train.steps",
    "train.global_batch",
    "train.workers",
    "search",
    "objectives",
    "sampler.name",
    "scheduler.metric",
    "scheduler.direction",
    "budget.trials",
    "seeds",
    "baselines",
)


class Manifest(Strict):
    """What a study's directory holds. Written once, when the study is created."""

    format: Literal["fat_ray study"] = "fat_ray study"
    schema_version: str = SCHEMA_VERSION
    """Version of the records, see docs/records.md."""
    kind: Literal["study", "run"] = "study"
    """``run``: a single run of the base settings, made by ``fat-ray run``."""
    name: Name
    launch: str
    """Random and unique for each launch: part of the ids of its W&B runs."""
    created_at: AwareDatetime
    """UTC."""
    fat_ray: str
    """Version of this package."""
    git_commit: str | None
    """Commit of the working directory at launch, if it is a repository."""
    git_dirty: bool | None
    """Whether tracked files differed from that commit."""
    command: list[str]
    """Arguments of the command line, without those that name a place and without secrets."""
    spec: dict[str, Any]
    """The resolved study as plain JSON; `StudySpec` reads it back."""


def create_study(
    directory: str | Path,
    spec: StudySpec,
    text: str,
    *,
    command: Sequence[str] = (),
    kind: Literal["study", "run"] = "study",
    min_free_bytes: int = MIN_FREE_BYTES,
) -> Manifest:
    """Makes a new study's directory with `study.yaml`, `study.json` and an empty `records/`; leaves nothing behind when it fails.

    Args:
        directory: The study's own directory; absent or empty.
        spec: The resolved study.
        text: The study file as written.
        command: Arguments of the command line, without the program's name.
        kind: See `Manifest`.
        min_free_bytes: What must be free at `directory`.

    Raises:
        OutputError: The directory holds a study or other files, is not writable, or has too little space.
        SpecError: The study holds a secret, which its records would keep.
    """
    directory = Path(directory)
    problems = secrets_in(as_json(spec), text)
    if problems:
        raise SpecError(f"study {spec.name}", problems)
    _check_unused(directory)
    _check_space(directory, min_free_bytes)
    manifest = Manifest(
        kind=kind,
        name=spec.name,
        launch=secrets.token_hex(4),
        created_at=datetime.now(UTC),
        fat_ray=__version__,
        command=safe_arguments(command),
        spec=as_json(spec),
        **git_state(),
    )
    _populate(directory, manifest, text)
    return manifest


def read_manifest(directory: str | Path | Place) -> Manifest:
    """The manifest of a study.

    Args:
        directory: The study's directory, or a URI of it.

    Raises:
        RecordError: There is none, or it is torn, foreign, or of a newer major version.
        InputError: No file system goes with the URI.
    """
    place = place_of(directory)
    name = f"{place.name}/{MANIFEST}"
    try:
        found = json.loads(place.read(MANIFEST))
    except FileNotFoundError as error:
        raise RecordError(f"{place.name} holds no study: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{name} cannot be read: {error}") from error
    return _parse(name, found)


def read_study(manifest: Manifest) -> StudySpec:
    """The resolved study of a manifest.

    Raises:
        RecordError: This version of the program knows no such study.
    """
    try:
        return StudySpec.model_validate_json(json.dumps(manifest.spec))
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(f"{MANIFEST} holds no study of this version: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def discard_study(directory: str | Path) -> None:
    """Takes `create_study` back when the study cannot start after all; leaves everything as it is once a run has records."""
    directory = Path(directory)
    with suppress(OSError):
        (directory / "records").rmdir()  # refuses while it holds anything
        for name in (MANIFEST, STUDY_TEXT, "optuna.journal"):
            (directory / name).unlink(missing_ok=True)
        for name in ("wandb", "logs", "control"):
            shutil.rmtree(directory / name, ignore_errors=True)
        directory.rmdir()


def check_writable(directory: Path) -> None:
    """Makes the directory where needed and tries to write a file in it: permission bits alone do not tell, least of all to root.

    Raises:
        OutputError: It cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise OutputError(f"cannot write in {directory}: {explain(error, directory)}; choose another output directory") from error


def safe_arguments(arguments: Sequence[str]) -> list[str]:
    """Command line arguments without options that name a place, paths reduced to their last part, secrets scrubbed."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in _LOCAL_OPTIONS:
            kept.append(scrub(Path(argument).name if argument.startswith(("/", "./", "../", "~")) else argument))
        skip = not skip and argument in _LOCAL_OPTIONS
    return kept


def _check_unused(directory: Path) -> None:
    if (directory / MANIFEST).exists():
        raise OutputError(f"{directory} already holds a study; choose another directory with --out, or another name")
    try:
        entries = sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot use {directory} as output directory: {error.strerror}") from error
    if entries:
        shown = ", ".join(entries[:3]) + (", …" if len(entries) > 3 else "")
        raise OutputError(f"{directory} is not empty and holds no study ({shown}); choose another directory with --out")


def _check_space(directory: Path, needed: int) -> None:
    free = free_bytes(directory)
    if free < needed:
        raise OutputError(f"too little space for {directory}: {mebibytes(free)} free, a study needs at least {mebibytes(needed)}")


def _populate(directory: Path, manifest: Manifest, text: str) -> None:
    check_writable(directory)
    try:
        # Making this directory is atomic, so of two launches at the same time one gets the place.
        (directory / "records").mkdir()
    except FileExistsError as error:
        raise OutputError(f"{directory} is being used by another launch; choose another directory with --out") from error
    try:
        write_atomic(directory / STUDY_TEXT, text.encode())
        write_atomic(directory / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
    except BaseException as error:
        discard_study(directory)
        if isinstance(error, RecordError):
            raise OutputError(str(error)) from error
        raise


def _parse(name: str, found: object) -> Manifest:
    if not isinstance(found, dict) or found.get("format") != Manifest.model_fields["format"].default:
        raise RecordError(f"{name} is not the manifest of a fat_ray study")
    check_version(name, str(found.get("schema_version", "")))
    known = {key: value for key, value in found.items() if key in Manifest.model_fields}
    try:
        manifest = Manifest.model_validate_json(json.dumps(known))
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(f"{name} is not a valid manifest: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    missing = [key for key in _READ_KEYS if not _holds(manifest.spec, key)]
    if missing:
        raise RecordError(f"{name} is not a valid manifest: spec lacks {', '.join(missing)}")
    return manifest


def _holds(spec: object, key: str) -> bool:
    """Whether each part of a dotted key is there."""
    for part in key.split("."):
        if not isinstance(spec, dict) or part not in spec:
            return False
        spec = spec[part]
    return True
