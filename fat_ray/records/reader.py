"""Reads records, also while they are written. Whatever is not named `part-*.parquet` does not exist for a reader."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fat_ray.errors import RecordError, VanishedError
from fat_ray.events import GroupInfo, RunEnd, RunStart, Status
from fat_ray.records.catalogue import COMPACTED, Batch, Damage, check_metadata, compacted, footer, run_bounds
from fat_ray.records.place import Place, place_of
from fat_ray.records.schema import TABLES

T = TypeVar("T")


def runs(directory: str | Path) -> list[str]:
    """Ids of all runs that have started, sorted."""
    place = place_of(directory)
    gathered = {run for batch in compacted(place, "runs") for run in batch.folded}
    started = {part.parent.name for part in (Path(directory) / "records" / "runs").glob("*/part-*.parquet") if part_number(part) == 0}
    return sorted(gathered | (started - {COMPACTED}))


def parts(directory: str | Path, table: str, run: str) -> list[Path]:
    """Files with the rows of one table and run, in the order in which these were written: a compacted one, then parts.

    Raises:
        RecordError: The compacted file that should hold them cannot be read.
    """
    while True:
        held = _compacted(directory, table, run)
        loose = sorted((Path(directory) / "records" / table / run).glob("part-*.parquet"), key=part_number)
        if _compacted(directory, table, run) == held:  # else a compaction beside this reader gathered what was seen before
            return [*held[0], *(part for part in loose if part_number(part) >= held[1])]


def next_part(directory: str | Path, table: str, run: str) -> int:
    """The number that the next part of one table and run gets: no number is ever used again.

    Raises:
        RecordError: As for `parts`.
    """
    loose = [part_number(part) + 1 for part in parts(directory, table, run) if part.parent.name != COMPACTED]
    return max([_compacted(directory, table, run)[1], *loose])


def num_compacted(directory: str | Path, table: str, run: str) -> int:
    """How many parts of one table and run lie in a compacted file.

    Raises:
        RecordError: As for `parts`.
    """
    return _compacted(directory, table, run)[1]


def _compacted(directory: str | Path, table: str, run: str) -> tuple[list[Path], int]:
    """The compacted file that holds rows of a run, and how many of its parts."""
    for batch in compacted(place_of(directory), table):
        if run in batch.folded and not batch.problem:
            return [Path(batch.file.path)] if batch.folded[run] else [], batch.folded[run]
        if run in batch.folded and not (Path(directory) / "records" / table / run / "part-00000.parquet").exists():
            raise RecordError(batch.problem)
    return [], 0


def part_number(part: Path) -> int:
    """Position of a part among those of its table and run.

    Raises:
        RecordError: The name has no number.
    """
    number = part.stem.removeprefix("part-")
    if not (number.isascii() and number.isdigit()):
        raise RecordError(f"{part} is not one of this program's records: its name has no number, as in part-00000.parquet")
    return int(number)


def read_table(directory: str | Path, table: str, run: str) -> pa.Table:
    """All rows of one table and run that are visible now, in the order in which they were written.

    Returns:
        A table with the columns of `TABLES[table]`; without rows when the run wrote none.

    Raises:
        RecordError: A file is torn, foreign, or of a newer major version; the message names it.
    """
    schema = TABLES[table]
    return _again_if_vanished(
        lambda: pa.concat_tables([schema.empty_table(), *(read_part(part, table, run) for part in parts(directory, table, run))])
    )


def _again_if_vanished(read: Callable[[], T]) -> T:
    try:
        return read()
    except VanishedError:  # a compaction beside this reader; it takes no part away twice
        return read()


def read_part(path: Path, table: str, run: str) -> pa.Table:
    """What one file holds of a table and run, with the columns that this version knows.

    Raises:
        RecordError: As for `read_table`.
    """
    is_compacted = path.parent.name == COMPACTED
    try:
        with path.open("rb") as source:
            found = read_rows(source, str(path), table, run if is_compacted else None)
    except FileNotFoundError as error:
        raise VanishedError(f"{path} is gone") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if not pc.all(pc.equal(found["run"], run), min_count=0).as_py():
        raise RecordError(f"{path} holds rows of another run than {run}")
    return found


def read_rows(source: Any, name: str, table: str, run: str | None, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of an open file, each page against its checksum, with the columns that this version knows.

    Args:
        source: The file.
        name: What it is called in messages.
        table: The table that it must be of.
        run: Only rows of this run; None: all.
        columns: Only these columns of the table, in this order; None: all.

    Raises:
        RecordError: As for `read_table`.
    """
    schema = TABLES[table] if columns is None else pa.schema([TABLES[table].field(column) for column in columns])
    try:
        with _opened(source) as file:
            check_metadata(name, file.schema_arrow.metadata or {}, table)
            known = [column for column in schema.names if column in file.schema_arrow.names]
            found = file.read(known) if run is None else _rows_of(file, known, run)
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{name} is not a whole Parquet file: {error}") from error
    if "run" not in found.column_names and "run" in schema.names:
        raise RecordError(f"{name} has no column run")
    return _conform(name, found, schema)


def _opened(source: Any) -> pq.ParquetFile:
    return pq.ParquetFile(source, page_checksum_verification=True)


def _rows_of(file: pq.ParquetFile, columns: Sequence[str], run: str) -> pa.Table:
    """The rows of one run, from the row groups that can hold any."""
    bounds = run_bounds(file.metadata)
    groups = [number for number in range(file.num_row_groups) if not bounds or bounds[number][0] <= run <= bounds[number][1]]
    found = file.read_row_groups(groups, columns)
    return found.filter(pc.equal(found["run"], run))


def torn_pages(place: Place, table: str, batch: Batch) -> list[Damage]:
    """Reads a whole file, each page against its checksum, and says which runs' rows cannot be had; nothing when all can."""
    name, damage = place.shown(batch.file.path), []
    bounds = footer(place, batch.file, table).bounds
    for number in range(max(len(bounds), 1)):
        low, high = bounds[number] if bounds else ("", max(batch.folded, default=""))
        try:
            with place.filesystem.open_input_file(batch.file.path) as source, _opened(source) as file:
                _conform(name, file.read_row_groups([number]) if bounds else file.read(), TABLES[table])
        except (OSError, pa.ArrowException, RecordError) as error:
            damage.append(Damage(frozenset(run for run in batch.folded if low <= run <= high), f"{name} is not whole: {error}"))
    return damage


def run_start(directory: str | Path, run: str) -> RunStart:
    """How a run was started; the last time, if it was started again.

    Raises:
        RecordError: There is no such run, or as for `read_table`.
    """
    row = _last_row(directory, "runs", run)
    if row is None:
        raise RecordError(f"{directory} has no records of a run {run}; it has {', '.join(runs(directory)) or 'none'}")
    groups = read_table(directory, "groups", run).to_pylist()
    return RunStart(
        **{name: row[name] for name in ("run", "study", "trial", "seed", "role", "label")},
        **{name: json.loads(row[f"{name}_json"]) for name in ("params", "spec", "environment")},
        groups=[
            GroupInfo(group["name"], group["layer"], group["kind"], group["elements"])
            for group in groups[len(groups) - row["num_groups"] :]
        ],
        started_at=row["started_at"].astimezone(UTC),
        follow=None if row["follow_json"] is None else [(step, active) for step, active in json.loads(row["follow_json"])],
    )


def run_end(directory: str | Path, run: str) -> RunEnd | None:
    """How a run ended; the last time, if it was started again. None when it has not ended, or was killed before it could say so.

    Raises:
        RecordError: As for `read_table`.
    """
    row = _last_row(directory, "ends", run)
    if row is None:
        return None
    values = {name: value for name, value in row.items() if name not in ("run", "status", "final_json", "best_json")}
    return RunEnd(**values, status=Status(row["status"]), final=_numbers(row["final_json"]), best=_numbers(row["best_json"]))


def _last_row(directory: str | Path, table: str, run: str) -> dict[str, Any] | None:
    return _again_if_vanished(lambda: _find_last_row(directory, table, run))


def _find_last_row(directory: str | Path, table: str, run: str) -> dict[str, Any] | None:
    for part in reversed(parts(directory, table, run)):
        rows: list[dict[str, Any]] = read_part(part, table, run).to_pylist()
        if rows:  # a part that was taken back has none
            return rows[-1]
    return None


def _numbers(text: str) -> dict[str, float]:
    # NaN and infinity are written as strings, see schema.py.
    return {name: float(value) for name, value in json.loads(text).items()}


def _conform(name: str, found: pa.Table, schema: pa.Schema) -> pa.Table:
    # A column that an older minor version did not have is null; types never change within a major version.
    try:
        arrays = [
            found[field.name].cast(field.type) if field.name in found.column_names else pa.nulls(len(found), field.type) for field in schema
        ]
    except pa.ArrowException as error:
        raise RecordError(f"{name} has a column of another type than this version knows: {error}") from error
    return pa.Table.from_arrays(arrays, schema=schema)
