"""Lazy scans over the records of one or several studies, finished or still running."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import polars as pl

from fat_ray.errors import RecordError
from fat_ray.records.schema import SCHEMA_VERSION, TABLES


@dataclass(frozen=True)
class Study:
    """One study directory and what its manifest says.

    Attributes:
        directory: Where the study lies.
        key: The study's name, made unique among the studies that are read together.
        manifest: The whole content of study.json.
    """

    directory: Path
    key: str
    manifest: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved specification of the study as plain JSON types."""
        return cast("dict[str, Any]", self.manifest["spec"])

    @property
    def created_at(self) -> datetime | None:
        """When the study was launched; None when the manifest does not say."""
        written = self.manifest.get("created_at")
        return datetime.fromisoformat(written) if isinstance(written, str) else None

    @property
    def text(self) -> str:
        """The study file as its author wrote it; empty when no copy was kept."""
        path = self.directory / "study.yaml"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def open_studies(directories: Sequence[Path | str]) -> list[Study]:
    """Reads the manifests of study directories; the same directory given twice is read once.

    Raises:
        RecordError: A directory holds no study, or one that was written by a newer major version.
    """
    paths = list({Path(directory).resolve(): Path(directory) for directory in directories}.values())
    manifests = [_read_manifest(path) for path in paths]
    repeated = Counter(manifest["name"] for manifest in manifests)
    keys = [
        manifest["name"] if repeated[manifest["name"]] == 1 else f"{manifest['name']} ({path})"
        for path, manifest in zip(paths, manifests, strict=True)
    ]
    return [Study(path, key, manifest) for path, key, manifest in zip(paths, keys, manifests, strict=True)]


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / "study.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{directory} is not a study: it has no study.json; give the directory that `fat-ray launch` printed") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    missing = sorted({"name", "schema_version", "spec"} - set(manifest if isinstance(manifest, dict) else ()))
    if missing:
        raise RecordError(f"{path} is not a study's manifest: it lacks {', '.join(missing)}")
    _check_version(path, str(manifest["schema_version"]))
    return cast("dict[str, Any]", manifest)


def _check_version(path: Path, version: str) -> None:
    major = version.partition(".")[0]
    if not major.isdecimal():
        raise RecordError(f"{path}: schema_version = {version!r} is not a version like {SCHEMA_VERSION!r}")
    if int(major) > int(SCHEMA_VERSION.partition(".")[0]):
        raise RecordError(f"{path}: the records have schema version {version}, this fat_ray reads up to {SCHEMA_VERSION}: update fat_ray")


def scan(studies: Sequence[Study], table: str) -> pl.LazyFrame:
    """One table of all studies, with the column `study` (the study's key) first.

    Only whole part files are seen, so this is safe while a study runs. A table that nobody has written yet is empty. Columns of a newer
    minor version are ignored, columns that an older one lacks are null.
    """
    return pl.concat([_scan_study(study, table) for study in studies])


def _scan_study(study: Study, table: str) -> pl.LazyFrame:
    schema = table_schema(table)
    files = sorted(study.directory.glob(f"records/{table}/*/part-*.parquet"))
    if files:
        frame = pl.scan_parquet(files, schema=schema, missing_columns="insert", extra_columns="ignore", glob=False)
    else:
        frame = pl.LazyFrame(schema=schema)
    return frame.select(pl.lit(study.key).alias("study"), pl.all().exclude("study"))


@cache
def table_schema(table: str) -> pl.Schema:
    """The columns of a table as polars types."""
    return cast("pl.DataFrame", pl.from_arrow(TABLES[table].empty_table())).schema


def collect(frame: pl.LazyFrame, studies: Sequence[Study]) -> pl.DataFrame:
    """Carries a query over records of these studies out.

    Raises:
        RecordError: A record file is torn or foreign.
    """
    try:
        return frame.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RecordError(f"records cannot be read: {_unreadable(studies)}: {error}") from error


def _unreadable(studies: Sequence[Study]) -> str:
    for path in (path for study in studies for path in sorted(study.directory.glob("records/*/*/part-*.parquet"))):
        try:
            pl.read_parquet_schema(path)
        except (pl.exceptions.PolarsError, OSError):
            return str(path)
    return ", ".join(str(study.directory) for study in studies)
