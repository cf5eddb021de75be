"""Gathers the many small parts of runs that ended for good in few large files; see `records.catalogue` for where these lie.

Each file is whole or absent, and says itself which parts it stands for. These are removed after the last file of a batch is there. So
whoever reads, and whoever goes on after a compaction was killed at any moment, finds each row once.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fat_ray.errors import RecordError
from fat_ray.events import Status
from fat_ray.records.catalogue import COMPACTED, RUNS_KEY, TABLES_KEY, RecordFile, compacted, footer, survey
from fat_ray.records.files import explain, free_bytes, mebibytes, sync
from fat_ray.records.lock import alone
from fat_ray.records.place import place_of
from fat_ray.records.reader import read_part, run_end
from fat_ray.records.schema import ROW_KEYS, TABLES

ROWS_PER_FILE = 2**23
"""Rows of a batch's largest table: some hundred MiB of drift."""

_ROWS_PER_GROUP = 2**18  # what a reader that wants one run must read
_FOR_GOOD = (Status.COMPLETED, Status.PRUNED, Status.DIVERGED)
_ORDER = [table for table in TABLES if table != "runs"] + ["runs"]  # once `runs` has its file, all tables have theirs


@dataclass(frozen=True)
class Compaction:
    """What was done.

    Attributes:
        runs: Runs whose parts were gathered.
        num_files: Files of records before and after.
        num_bytes: Their bytes before and after.
        kept: Run to why its parts stay as they are.
    """

    runs: list[str]
    num_files: tuple[int, int]
    num_bytes: tuple[int, int]
    kept: dict[str, str]

    def __str__(self) -> str:
        (before, after), (size, less) = self.num_files, self.num_bytes
        return f"{len(self.runs)} runs gathered: {before} files of {mebibytes(size)} became {after} files of {mebibytes(less)}"


@dataclass(frozen=True)
class _Candidate:
    """A run to gather: its parts by table, the rows of its largest table, and the bytes of all its parts."""

    run: str
    parts: Mapping[str, Sequence[RecordFile]]
    num_rows: int
    num_bytes: int


def compact(directory: str | Path, *, rows_per_file: int = ROWS_PER_FILE, say: Callable[[int, int], None] | None = None) -> Compaction:
    """Gathers the parts of all runs that completed, were pruned or diverged; those that may go on, or are damaged, stay as they are.

    Doing it again does nothing; after an interruption it goes on.

    Args:
        directory: A study's directory on this machine.
        rows_per_file: How large a batch may become, by the rows of its largest table.
        say: Called with the number of runs done and their total.

    Raises:
        OutputError: Another process is at work in the directory.
        RecordError: A file cannot be read or written, for example because no space is left; nothing is lost.
    """
    directory = Path(directory)
    with alone(directory):
        before = _size(directory)
        done = _finish_interrupted(directory)
        ready, kept = _candidates(directory, _loose(directory))
        for number, batch in enumerate(_batches(ready, rows_per_file), _next_number(directory)):
            _check_space(directory, batch)
            _gather(directory, number, batch)
            done += [candidate.run for candidate in batch]
            if say is not None:
                say(len(done), len(ready))
        after = _size(directory)
    return Compaction(sorted(done), (before[0], after[0]), (before[1], after[1]), kept)


def _size(directory: Path) -> tuple[int, int]:
    """Number and bytes of all files of records."""
    place = place_of(directory)
    sizes = [info.size for table in TABLES for info in place.files(f"records/{table}", recursive=True)]
    return len(sizes), sum(sizes)


def _finish_interrupted(directory: Path) -> list[str]:
    """Writes the files that a batch still lacks, and removes parts that are gathered already. Returns the runs of such batches."""
    place = place_of(directory)
    batches = [batch for table in TABLES for batch in compacted(place, table) if not batch.problem]
    gathered = {batch.file.number or 0: sorted(batch.folded) for batch in batches}
    unfinished = {number: runs for number, runs in gathered.items() if not _file(directory, "runs", number).exists()}
    loose = _loose(directory) if unfinished else _Loose({}, {})
    for number, runs in unfinished.items():
        if all("runs" in loose.parts.get(run, {}) for run in runs):  # else that file was there, and is lost
            _gather(directory, number, [_candidate(directory, run, loose.parts[run]) for run in runs])
    for number in set(gathered) - set(unfinished):
        _remove_parts(directory, gathered[number])
    return [run for runs in unfinished.values() for run in runs]


@dataclass(frozen=True)
class _Loose:
    """The parts of all runs that are in no compacted file, by run and table; and what is wrong with a run's parts."""

    parts: dict[str, dict[str, list[RecordFile]]]
    damage: dict[str, str]


def _loose(directory: Path) -> _Loose:
    found = _Loose({}, {})
    for table in TABLES:
        listing = survey(place_of(directory), table)
        found.damage.update({run: damage.message for damage in listing.damage for run in damage.runs})
        for file in listing.loose:
            found.parts.setdefault(file.folder, {}).setdefault(table, []).append(file)
    return found


def _candidates(directory: Path, loose: _Loose) -> tuple[list[_Candidate], dict[str, str]]:
    """The runs to gather, by name, and those whose parts stay, with the reason."""
    kept, ready = dict(loose.damage), []
    for run, parts in sorted(loose.parts.items()):
        end = run_end(directory, run) if run not in kept else None
        if run not in kept and (end is None or end.status not in _FOR_GOOD):
            kept[run] = "has not ended" if end is None else f"{end.status.value}: it may go on"
        elif run not in kept:
            ready.append(_candidate(directory, run, parts))
    return ready, kept


def _candidate(directory: Path, run: str, parts: Mapping[str, Sequence[RecordFile]]) -> _Candidate:
    place = place_of(directory)
    rows = max(sum(footer(place, file, table).num_rows for file in files) for table, files in parts.items())
    return _Candidate(run, parts, rows, sum(file.size for files in parts.values() for file in files))


def _batches(ready: Iterable[_Candidate], rows_per_file: int) -> Iterator[list[_Candidate]]:
    batch: list[_Candidate] = []
    for candidate in ready:
        if batch and sum(given.num_rows for given in batch) + candidate.num_rows > rows_per_file:
            yield batch
            batch = []
        batch.append(candidate)
    if batch:
        yield batch


def _next_number(directory: Path) -> int:
    place = place_of(directory)
    return max((batch.file.number or 0 for table in TABLES for batch in compacted(place, table)), default=-1) + 1


def _check_space(directory: Path, batch: Sequence[_Candidate]) -> None:
    needed, free = sum(candidate.num_bytes for candidate in batch), free_bytes(directory)
    if free < needed:
        raise RecordError(
            f"too little space to compact {directory}: {mebibytes(free)} free, the next file may need {mebibytes(needed)};"
            " nothing is lost, make space and start it again"
        )


def _gather(directory: Path, number: int, batch: Sequence[_Candidate]) -> None:
    """Makes the files of one batch that are not there yet, then removes the parts."""
    for table in _ORDER:
        path = _file(directory, table, number)
        if not path.exists():
            _write(path, table, {candidate.run: candidate.parts.get(table, ()) for candidate in batch})
    _remove_parts(directory, [candidate.run for candidate in batch])


def _file(directory: Path, table: str, number: int) -> Path:
    return directory / "records" / table / COMPACTED / f"part-{number:05d}.parquet"


def _write(path: Path, table: str, parts: Mapping[str, Sequence[RecordFile]]) -> None:
    """Writes one file beside its place, synced, and renames it; then the rename is on the disk too, since parts are removed next."""
    metadata = {
        RUNS_KEY: json.dumps({run: len(files) for run, files in parts.items()}),
        TABLES_KEY: json.dumps(list(TABLES)),
    }
    schema = TABLES[table].with_metadata({**(TABLES[table].metadata or {}), **metadata})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file, pq.ParquetWriter(file, schema, **_encoding(schema)) as writer:
            for rows in _in_groups(_latest(table, run, files) for run, files in parts.items()):
                writer.write_table(rows.replace_schema_metadata(schema.metadata), row_group_size=len(rows))
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RecordError(f"cannot write {path}: {explain(error, path)}; nothing is lost") from error
        raise


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Strings repeat, so they are numbered; measured numbers do not, but their first bytes are alike."""
    strings = [field.name for field in schema if pa.types.is_string(field.type)]
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    return {"compression": "zstd", "write_page_checksum": True, "use_dictionary": strings, "use_byte_stream_split": floats or False}


def _in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables joined to row groups; a run that fits in one is not cut."""
    waiting: list[pa.Table] = []
    for rows in tables:
        if waiting and sum(map(len, waiting)) + len(rows) > _ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
        if len(rows):
            waiting.append(rows)
    if waiting:
        yield pa.concat_tables(waiting)


def _latest(table: str, run: str, files: Sequence[RecordFile]) -> pa.Table:
    """The rows of a run that count: of those about the same thing, as version 1.0 may have, the last one."""
    import polars as pl

    rows = pa.concat_tables([TABLES[table].empty_table(), *(read_part(Path(file.path), table, run) for file in files)])
    if len(rows) < 2:
        return rows
    keys = list(ROW_KEYS[table])
    frame = pl.DataFrame(pl.from_arrow(rows.select(keys))) if keys else pl.DataFrame({"key": [0] * len(rows)})
    places = frame.with_row_index("row number").unique(frame.columns, keep="last", maintain_order=True)["row number"]
    return rows if len(places) == len(rows) else rows.take(places.to_numpy())


def _remove_parts(directory: Path, runs: Sequence[str]) -> None:
    """Removes the parts that compacted files stand for, and folders that are empty then."""
    place = place_of(directory)
    for table in TABLES:
        for batch in compacted(place, table):
            for run in set(runs) & set(batch.folded) if not batch.problem else ():
                folder = directory / "records" / table / run
                with suppress(OSError):  # what stays counts no more, and goes next time
                    for number in range(batch.folded[run]):
                        (folder / f"part-{number:05d}.parquet").unlink(missing_ok=True)
                    folder.rmdir()
