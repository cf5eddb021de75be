"""Lazy scans over the records of one or several studies, finished or still running."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import polars as pl

from fat_ray.errors import RecordError
from fat_ray.records.manifest import STUDY_TEXT, Manifest, read_manifest
from fat_ray.records.reader import check_part, parts, read_part
from fat_ray.records.schema import TABLES

_ROW_KEYS = {
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


@dataclass(frozen=True)
class Study:
    """One study directory and what its manifest says.

    Attributes:
        directory: Where the study lies.
        key: The study's name, made unique among the studies that are read together.
    """

    directory: Path
    key: str
    manifest: Manifest

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved specification of the study as plain JSON types."""
        return self.manifest.spec

    @property
    def text(self) -> str:
        """The study file as its author wrote it; empty when no copy was kept."""
        path = self.directory / STUDY_TEXT
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def open_studies(directories: Sequence[Path | str]) -> list[Study]:
    """Reads the manifests of study directories; the same directory given twice is read once.

    Raises:
        RecordError: A directory holds no study, or one that was written by a newer major version.
    """
    distinct: dict[Path, Path] = {}
    for directory in directories:
        distinct.setdefault(Path(directory).resolve(), Path(directory))
    manifests = {path: read_manifest(path) for path in distinct.values()}
    repeated = Counter(manifest.name for manifest in manifests.values())
    return [Study(path, found.name if repeated[found.name] == 1 else f"{found.name} ({path})", found) for path, found in manifests.items()]


def scan(studies: Sequence[Study], table: str) -> pl.LazyFrame:
    """One table of all studies, with the column `study` (the study's key) first.

    Only whole part files are seen, so this is safe while a study runs. A table that nobody has written yet is empty. Columns of a newer
    minor version are ignored, columns that an older one lacks are null. Rows are in the order in which each run wrote them.

    Raises:
        RecordError: The footer of a file is torn, foreign, of a newer major version or of another run; the message names the file.
    """
    return pl.concat([_scan_study(study, table) for study in studies])


def _scan_study(study: Study, table: str) -> pl.LazyFrame:
    schema = table_schema(table)
    files = _checked_files(study, table)
    if not files:
        return pl.LazyFrame(schema=schema).select(pl.lit(study.key).alias("study"), pl.all().exclude("study"))
    frame = pl.scan_parquet(files, schema=schema, missing_columns="insert", extra_columns="ignore", glob=False)
    latest = frame.unique(["run", *_ROW_KEYS[table]], keep="last", maintain_order=True)
    return latest.select(pl.lit(study.key).alias("study"), pl.all().exclude("study"))


def _files(study: Study, table: str) -> list[Path]:
    runs = sorted((study.directory / "records" / table).glob("*"))
    return [part for run in runs for part in parts(study.directory, table, run.name)]


def _checked_files(study: Study, table: str) -> list[Path]:
    files = _files(study, table)
    for part in files:
        check_part(part, table, part.parent.name)
    return files


@cache
def table_schema(table: str) -> pl.Schema:
    """The columns of a table as polars types."""
    return cast("pl.DataFrame", pl.from_arrow(TABLES[table].empty_table())).schema


def collect(frame: pl.LazyFrame, studies: Sequence[Study]) -> pl.DataFrame:
    """Carries a query over records of these studies out.

    Raises:
        RecordError: A record file is torn or foreign; the message names it.
    """
    try:
        return frame.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        for study, table in ((study, table) for study in studies for table in TABLES):
            for part in _files(study, table):
                read_part(part, table, part.parent.name)  # knows what to say about a bad file
        raise RecordError(f"the records of {', '.join(str(study.directory) for study in studies)} cannot be read: {error}") from error
