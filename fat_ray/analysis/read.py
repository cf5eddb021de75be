"""Lazy scans over the records of one or several studies, finished or still running, on any file system."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self, TypeVar, cast

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from fat_ray.errors import InputError, RecordError, VanishedError
from fat_ray.records.catalogue import Batch, Damage, RecordFile, survey
from fat_ray.records.manifest import STUDY_TEXT, Manifest, read_manifest
from fat_ray.records.place import Place, place_of
from fat_ray.records.reader import read_rows, torn_pages
from fat_ray.records.schema import ROW_KEYS, TABLES

T = TypeVar("T")
_ATTEMPTS, _SHOWN = 5, 5


class DamagedError(RecordError):
    """Files of a study cannot be read.

    Attributes:
        study: Its key.
        damage: What is wrong with each, and whose rows are affected.
    """

    def __init__(self, study: str, damage: Sequence[Damage]) -> None:
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        super().__init__(f"{damage[0].message}{more}")
        self.study = study
        self.damage = list(damage)


class Records(Protocol):
    """Where the rows of a study come from. Whatever offers this can be compared: see `open_study`."""

    def scan(self, table: str) -> pl.LazyFrame:
        """The rows of a table, with the columns of `table_schema(table)`.

        Raises:
            RecordError: They cannot be had.
        """
        ...

    def diagnose(self) -> list[Damage]:
        """Reads everything, and says what cannot be read and is not left out yet."""
        ...

    def without(self, damage: Sequence[Damage]) -> Self:
        """The same, but for the runs that are affected by some damage."""
        ...


@dataclass(frozen=True)
class ParquetRecords:
    """The records in a study's directory.

    Attributes:
        place: The directory.
        left_out: Runs whose rows are not wanted.
        known: What was said of damage that is known already.
    """

    place: Place
    left_out: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()

    def scan(self, table: str) -> pl.LazyFrame:
        """See `Records`. Only whole files are seen, so this is safe while a study runs, and while it is compacted.

        Raises:
            DamagedError: The footer of a file is torn, foreign, of a newer major version or of another run, or a file is missing.
        """
        listing = survey(self.place, table)
        damage = [found for found in listing.damage if found.message not in self.known]
        if damage:
            raise DamagedError(self.place.name, damage)
        loose = [file for file in listing.loose if file.folder not in self.left_out]
        gathered = self._frame(table, [batch.file for batch in listing.compacted])
        if gathered is None:
            return self._latest(table, loose)
        again = {file.folder for file in loose} & {run for batch in listing.compacted for run in batch.folded}
        wanted = gathered.filter(~pl.col("run").is_in([*self.left_out, *again])) if self.left_out or again else gathered
        if not loose:
            return wanted
        more = [gathered.filter(pl.col("run").is_in(list(again)))] if again else []
        return pl.concat([wanted, self._latest(table, loose, *more)])

    def _latest(self, table: str, files: Sequence[RecordFile], *before: pl.LazyFrame) -> pl.LazyFrame:
        """The rows that count; compacted files hold no others."""
        found = self._frame(table, files)
        frames = [*before, *([] if found is None else [found])]
        if not frames:
            return pl.LazyFrame(schema=table_schema(table))
        return pl.concat(frames).unique(["run", *ROW_KEYS[table]], keep="last", maintain_order=True)

    def _frame(self, table: str, files: Sequence[RecordFile]) -> pl.LazyFrame | None:
        if not files:
            return None
        schema, paths = table_schema(table), [file.path for file in files]
        if self.place.local is None:
            return _remote(self.place, table, paths)
        return pl.scan_parquet(paths, schema=schema, missing_columns="insert", extra_columns="ignore", glob=False)

    def diagnose(self) -> list[Damage]:
        """See `Records`."""
        found = []
        for table in TABLES:
            listing = survey(self.place, table)
            files = [*listing.compacted, *(Batch(file, {file.folder: 0}) for file in listing.loose if file.folder not in self.left_out)]
            found += [*listing.damage, *(damage for batch in files for damage in torn_pages(self.place, table, batch))]
        return [damage for damage in found if damage.message not in self.known]

    def without(self, damage: Sequence[Damage]) -> Self:
        """See `Records`."""
        runs = frozenset(run for each in damage for run in each.runs)
        return replace(self, left_out=self.left_out | runs, known=self.known | {each.message for each in damage})


@dataclass(frozen=True)
class Study:
    """One study and what its manifest says.

    Attributes:
        place: Where the study lies.
        key: The study's name, made unique among the studies that are read together.
        manifest: Its manifest.
        records: Its rows.
        chosen: The runs that were asked for by name; None: all.
        damage: What of its records cannot be read and is left out, a sentence each.
    """

    place: Place
    key: str
    manifest: Manifest
    records: Records
    chosen: frozenset[str] | None = None
    damage: tuple[str, ...] = ()

    @property
    def directory(self) -> Path | str:
        """Where the study lies, as a path on this machine or as a URI."""
        return self.place.local or f"{self.place.name}{self.place.options}"

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved specification of the study as plain JSON types."""
        return self.manifest.spec

    @property
    def text(self) -> str:
        """The study file as its author wrote it; empty when no copy was kept."""
        try:
            return self.place.read(STUDY_TEXT).decode(errors="replace")
        except OSError:
            return ""


def open_studies(given: Sequence[Path | str | Place]) -> list[Study]:
    """Reads the manifests of studies; the same directory given twice is read once.

    Args:
        given: Directories, or URIs of any file system that Arrow knows; or runs in them, ``DIR/RUN``.

    Raises:
        RecordError: A directory holds no study, or one that was written by a newer major version.
        InputError: No file system goes with a URI.
    """
    distinct: dict[str, Study] = {}
    for study in map(open_study, given):
        identity = str(study.place.local.resolve()) if study.place.local else str(study.directory)
        before = distinct.setdefault(identity, study)
        if before.chosen is not None:
            distinct[identity] = replace(before, chosen=study.chosen and before.chosen | study.chosen)
    studies = list(distinct.values())
    repeated = Counter(study.key for study in studies)
    return [study if repeated[study.key] == 1 else replace(study, key=f"{study.key} ({study.place.name})") for study in studies]


def open_study(given: Path | str | Place) -> Study:
    """One study. The only place that knows what can be read: whatever else shall be compared gets its own `Records` here.

    Args:
        given: A directory or its URI; or one of its runs, ``DIR/RUN``, which is then the only one chosen.

    Raises:
        RecordError: As for `open_studies`.
        InputError: As for `open_studies`.
    """
    place, chosen = place_of(given), None
    try:
        manifest = read_manifest(place)
    except RecordError as error:
        parent, run = place.parent, PurePosixPath(place.root).name
        try:
            manifest = read_manifest(parent)
        except RecordError:
            raise error from None
        known = _runs(parent)
        if run not in known:
            shown = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
            raise InputError(f"{place.name}: the study in {parent.name} has no run {run}; it has {shown or 'none'}") from error
        place, chosen = parent, frozenset([run])
    return Study(place, manifest.name, manifest, ParquetRecords(place), chosen)


def _runs(place: Place) -> list[str]:
    listing = survey(place, "runs")
    return sorted({file.folder for file in listing.loose}.union(*(batch.folded for batch in listing.compacted)))


def scan(studies: Sequence[Study], table: str) -> pl.LazyFrame:
    """One table of all studies, with the column `study` (the study's key) first.

    A table that nobody has written yet is empty. Columns of a newer minor version are ignored, columns that an older one lacks are null.
    Rows are in the order in which each run wrote them.

    Raises:
        RecordError: The footer of a file is torn, foreign, of a newer major version or of another run; the message names the file.
    """
    return pl.concat([_scan_study(study, table) for study in studies])


def _scan_study(study: Study, table: str) -> pl.LazyFrame:
    try:
        rows = study.records.scan(table)
    except DamagedError as error:
        raise DamagedError(study.key, error.damage) from error
    return rows.select(pl.lit(study.key).alias("study"), pl.all().exclude("study"))


@cache
def table_schema(table: str) -> pl.Schema:
    """The columns of a table as polars types."""
    return pl.Schema(TABLES[table])


def _remote(place: Place, table: str, paths: Sequence[str]) -> pl.LazyFrame:
    """Files of a file system that polars does not know: the columns that are wanted, file by file."""

    def read(columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _batch_size: int | None) -> Iterator[pl.DataFrame]:
        left = n_rows
        for path in paths:
            with place.filesystem.open_input_file(path) as source:
                rows = cast("pl.DataFrame", pl.from_arrow(read_rows(source, place.shown(path), table, None, columns)))
            found = (rows if predicate is None else rows.filter(predicate)).head(left if left is not None else rows.height)
            left = None if left is None else left - found.height
            yield found
            if left == 0:
                break

    return register_io_source(read, schema=table_schema(table))


def collect(frame: pl.LazyFrame, studies: Sequence[Study]) -> pl.DataFrame:
    """Carries a query over records of these studies out.

    Raises:
        DamagedError: A record file is torn or foreign; the message names it.
        VanishedError: A file was compacted since the scan: scan again.
        RecordError: The query fails for another reason.
    """
    try:
        return frame.collect()
    except FileNotFoundError as error:
        raise VanishedError(f"a file of records is gone: {error}") from error
    except (pl.exceptions.PolarsError, pa.ArrowException, RecordError, OSError) as error:
        for study in studies:
            damage = study.records.diagnose()
            if damage:
                raise DamagedError(study.key, damage) from error
        raise RecordError(f"the records of {', '.join(study.place.name for study in studies)} cannot be read: {error}") from error


def tolerantly(studies: Sequence[Study], query: Callable[[list[Study]], T]) -> T:
    """The result of a query over what can be read of some studies: runs with damaged records are left out.

    Args:
        studies: The studies.
        query: Scans and collects. It is called again without a run that turns out to be damaged, which the `damage` of its study tells,
            and when a compaction came between.

    Raises:
        RecordError: The query fails for another reason.
    """
    whole, vanished = list(studies), 0
    while True:
        try:
            return query(whole)
        except DamagedError as error:
            whole = [_without(study, error.damage) if study.key == error.study else study for study in whole]
        except VanishedError:
            vanished += 1
            if vanished == _ATTEMPTS:
                raise


def _without(study: Study, damage: Sequence[Damage]) -> Study:
    return replace(study, records=study.records.without(damage), damage=(*study.damage, *map(_left_out, damage)))


def _left_out(damage: Damage) -> str:
    runs = sorted(damage.runs)
    if not runs:
        return f"{damage.message}. Nobody knows whose rows it holds; everything else was read."
    shown = ", ".join(runs[:_SHOWN]) + (f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else "")
    return f"Left out: {shown}. {damage.message}."
