"""Which files hold the rows of a table, on any file system, and what is wrong with them.

A run's rows lie in its own parts, ``records/<table>/<run>/part-00000.parquet``, until `records.compact` gathers those of many runs in
``records/<table>/compacted/part-00000.parquet``. The footer of a compacted file says whose rows it holds and how many parts of each run
they were; parts with these numbers count no more, whether they are still there or not.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fat_ray.errors import RecordError
from fat_ray.records.place import Place
from fat_ray.records.schema import TABLES, check_version

COMPACTED = "compacted"
"""Folder of the compacted files of a table, beside those of the runs; ids of runs end with their seed, so none has this name."""

RUNS_KEY, TABLES_KEY = b"fat_ray.runs", b"fat_ray.tables"
"""Metadata of compacted files: a JSON object, run to number of parts; a JSON list, the tables that have a file of this number."""

_PART = re.compile(r"part-.*\.parquet")
_THREADS, _ATTEMPTS = 8, 5


@dataclass(frozen=True)
class RecordFile:
    """A file of records as its directory lists it.

    Attributes:
        path: Within the file system.
        folder: The run, or `COMPACTED`.
        number: Position among the files of its folder; None: its name has none, so it is nobody's.
        size: Bytes.
        mtime_ns: When it was written; None where the file system does not tell.
    """

    path: str
    folder: str
    number: int | None
    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Footer:
    """What the end of a file says of it, without a row being read.

    Attributes:
        num_rows: Its rows.
        bounds: Least and greatest run of each row group, as far as the file says.
        folded: Of a compacted file, run to number of parts.
        tables: Of a compacted file, the tables that have a file of the same number.
    """

    num_rows: int
    bounds: list[tuple[str, str]]
    folded: Mapping[str, int]
    tables: Sequence[str]


@dataclass(frozen=True)
class Batch:
    """A compacted file, and whose rows it holds; with a problem, whose rows cannot be had."""

    file: RecordFile
    folded: Mapping[str, int]
    problem: str = ""


@dataclass(frozen=True)
class Damage:
    """A file that is missing, torn, foreign or of a newer version.

    Attributes:
        runs: Whose rows are affected; empty when nobody knows.
        message: What is wrong, with the name of the file.
    """

    runs: frozenset[str]
    message: str


@dataclass(frozen=True)
class Listing:
    """The files of a table.

    Attributes:
        compacted: Those of many runs that can be read.
        loose: Parts of single runs that can be read and are in no compacted file, by run and number.
        damage: What is wrong with the others.
    """

    compacted: list[Batch] = field(default_factory=list)
    loose: list[RecordFile] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)


def survey(place: Place, table: str) -> Listing:
    """The files of a table that count now, each with a footer that was found good; safe beside writers and beside a compaction.

    Raises:
        OSError: The file system cannot be asked.
        RecordError: Files come and go all the time.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _survey(place, table)
        except _ChangedError:  # a compaction beside this reader gathered parts that it had seen already
            continue
    raise RecordError(f"the files below {place.name}/records/{table} change faster than they can be read; try again")


class _ChangedError(Exception):
    pass


def _survey(place: Place, table: str) -> Listing:
    before = _names(place, table)
    batches, found = compacted(place, table), _record_files(place.files(f"records/{table}", recursive=True))
    if _names(place, table) != before:
        raise _ChangedError
    folded = {run: count for batch in batches if not batch.problem for run, count in batch.folded.items()}
    by_run: dict[str, list[RecordFile]] = {}
    damage = []
    for file in found:
        if file.number is None:
            name = f"{place.shown(file.path)} is not one of this program's records: its name has no number, as in part-00000.parquet"
            damage.append(Damage(frozenset([file.folder]), name))
        elif file.folder != COMPACTED and file.number >= folded.get(file.folder, 0):
            by_run.setdefault(file.folder, []).append(file)
    damage += [problem for batch in batches if batch.problem for problem in _lost(batch, by_run)]
    damage += [gap for run, files in by_run.items() for gap in _gaps(place, files, folded.get(run, 0))]
    try:
        loose, torn = _checked(place, table, [file for _, files in sorted(by_run.items()) for file in files])
    except FileNotFoundError as error:
        raise _ChangedError from error
    return Listing([batch for batch in batches if not batch.problem], loose, damage + torn)


def compacted(place: Place, table: str) -> list[Batch]:
    """The compacted files of a table by number, also those that are missing.

    Raises:
        OSError: The file system cannot be asked.
    """
    numbered = {file.number: file for file in _compacted_files(place, table) if file.number is not None}
    batches = []
    for file in numbered.values():
        try:
            batches.append(Batch(file, footer(place, file, table).folded))
        except RecordError as error:
            batches.append(Batch(file, _known_elsewhere(place, file), str(error)))
    for file in _compacted_files(place, "ends" if table == "runs" else "runs"):
        if file.number not in numbered:
            batches += _missing(place, file, table)
    return sorted(batches, key=lambda batch: batch.file.number or 0)


def footer(place: Place, file: RecordFile, table: str) -> Footer:
    """The footer of a file; one that was read before is known, unless the file has changed.

    Raises:
        RecordError: It is torn, foreign, of a newer major version, or holds rows of another run than its folder's; the message names it.
    """
    read = _footer.__wrapped__ if file.mtime_ns is None else _footer
    found: Footer = read(place, table, file)
    return found


@lru_cache(maxsize=2**17)
def _footer(place: Place, table: str, file: RecordFile) -> Footer:
    name = place.shown(file.path)
    try:
        with place.filesystem.open_input_file(file.path) as source:
            metadata = pq.read_metadata(source)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{name} is not a whole Parquet file: {error}") from error
    keys: Mapping[bytes, bytes] = metadata.metadata or {}
    check_metadata(name, keys, table)
    bounds = run_bounds(metadata)
    if file.folder == COMPACTED:
        folded, tables = _json(name, keys, RUNS_KEY, dict), _json(name, keys, TABLES_KEY, list)
        return Footer(metadata.num_rows, bounds, folded, tables)
    if not {run for pair in bounds for run in pair} <= {file.folder}:
        raise RecordError(f"{name} holds rows of another run than {file.folder}")
    return Footer(metadata.num_rows, bounds, {}, [])


def check_metadata(name: object, metadata: Mapping[bytes, bytes], table: str) -> None:
    """Refuses a file that is no part of a table, or of a newer major version.

    Raises:
        RecordError: It is so.
    """
    found = metadata.get(b"fat_ray.table", b"").decode(errors="replace")
    if found != table:
        raise RecordError(f"{name} is not a part of the table {table}: its metadata says fat_ray.table = {found or 'nothing'}")
    check_version(name, metadata.get(b"fat_ray.schema", b"").decode(errors="replace"))


def _json(name: str, metadata: Mapping[bytes, bytes], key: bytes, kind: type) -> Any:
    try:
        found = json.loads(metadata.get(key, b""))
    except ValueError:
        found = None
    if not isinstance(found, kind):
        raise RecordError(f"{name} is not a compacted file: its metadata has no {key.decode()}")
    return found


def run_bounds(metadata: pq.FileMetaData) -> list[tuple[str, str]]:
    """Least and greatest run of each row group of a file; of all of them, or none where it does not say."""
    bounds = []
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        columns = (group.column(number) for number in range(group.num_columns))
        statistics = next((column.statistics for column in columns if column.path_in_schema == "run"), None)
        if statistics is None or not statistics.has_min_max:
            return []
        bounds.append((statistics.min, statistics.max))
    return bounds


def _record_files(infos: Iterable[Any]) -> list[RecordFile]:
    """The parts among files, by folder and number; whatever is not named ``part-*.parquet`` does not exist for a reader."""
    found = []
    for info in infos:
        path = PurePosixPath(info.path)
        if _PART.fullmatch(path.name):
            number = path.stem.removeprefix("part-")
            known = int(number) if number.isascii() and number.isdigit() else None
            found.append(RecordFile(info.path, path.parent.name, known, info.size, info.mtime_ns))
    return sorted(found, key=lambda file: (file.folder, file.number is None, file.number, file.path))


def _compacted_files(place: Place, table: str) -> list[RecordFile]:
    return _record_files(place.files(f"records/{table}/{COMPACTED}"))


def _names(place: Place, table: str) -> list[str]:
    return [file.path for file in _compacted_files(place, table)]


def _known_elsewhere(place: Place, file: RecordFile) -> Mapping[str, int]:
    """Whose rows a compacted file that cannot be read should hold: all tables divide the runs alike."""
    for table in TABLES:
        for other in _compacted_files(place, table):
            if other.number == file.number and other.path != file.path:
                try:
                    return footer(place, other, table).folded
                except RecordError:
                    continue
    return {}


def _missing(place: Place, other: RecordFile, table: str) -> list[Batch]:
    """What is missing of a table, seen from a file of another table with the same number: `runs` is written last, and `ends` before it."""
    seen_from = "ends" if table == "runs" else "runs"
    try:
        known = footer(place, other, seen_from)
    except RecordError:
        return []  # which is told where that table is read
    if table not in known.tables:
        return []
    absent = RecordFile(place.path(f"records/{table}/{COMPACTED}/{PurePosixPath(other.path).name}"), COMPACTED, other.number, 0, None)
    return [Batch(absent, known.folded, f"{place.shown(absent.path)} is missing")]


def _lost(batch: Batch, by_run: Mapping[str, Sequence[RecordFile]]) -> list[Damage]:
    """What the problem of a compacted file means for the runs whose own parts are gone; they are there until it is whole."""
    lost = frozenset(run for run in batch.folded if not any(file.number == 0 for file in by_run.get(run, ())))
    return [Damage(lost, batch.problem)] if lost or not batch.folded else []


def _gaps(place: Place, files: Sequence[RecordFile], first: int) -> list[Damage]:
    """The first part that is missing before one that is there."""
    for expected, file in enumerate(files, first):
        if file.number != expected:
            path = PurePosixPath(file.path)
            name = place.shown(str(path.with_name(f"part-{expected:05d}.parquet")))
            return [Damage(frozenset([file.folder]), f"{name} is missing: {path.name} is there")]
    return []


def _checked(place: Place, table: str, files: Sequence[RecordFile]) -> tuple[list[RecordFile], list[Damage]]:
    """The files with a good footer, and what is wrong with the others."""

    def problem(file: RecordFile) -> str:
        try:
            footer(place, file, table)
        except RecordError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(_THREADS) as pool:
        problems = list(pool.map(problem, files, chunksize=64))
    good = [file for file, said in zip(files, problems, strict=True) if not said]
    return good, [Damage(frozenset([file.folder]), said) for file, said in zip(files, problems, strict=True) if said]
