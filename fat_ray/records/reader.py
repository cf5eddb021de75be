"""Reads records, also while they are written. Whatever is not named `part-*.parquet` does not exist for a reader."""

import json
from collections.abc import Mapping
from datetime import UTC
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fat_ray.errors import RecordError
from fat_ray.events import GroupInfo, RunEnd, RunStart, Status
from fat_ray.records.schema import TABLES, check_version


def runs(directory: str | Path) -> list[str]:
    """Ids of all runs that have started, sorted."""
    return sorted(part.parent.name for part in (Path(directory) / "records" / "runs").glob("*/part-*.parquet") if part_number(part) == 0)


def parts(directory: str | Path, table: str, run: str) -> list[Path]:
    """Part files of one table and run, in the order in which they were written."""
    return sorted((Path(directory) / "records" / table / run).glob("part-*.parquet"), key=part_number)


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
    return pa.concat_tables([schema.empty_table(), *(read_part(part, table, run) for part in parts(directory, table, run))])


def read_part(path: Path, table: str, run: str) -> pa.Table:
    """One part file, with the columns that this version knows.

    Raises:
        RecordError: As for `read_table`.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_metadata(path, file.schema_arrow.metadata or {}, table)
            found = file.read([name for name in TABLES[table].names if name in file.schema_arrow.names])
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{path} is not a whole Parquet file: {error}") from error
    if "run" not in found.column_names or not pc.all(pc.equal(found["run"], run), min_count=0).as_py():
        raise RecordError(f"{path} holds rows of another run than {run}")
    return _conform(path, found, TABLES[table])


def check_part(path: Path, table: str, run: str) -> None:
    """Refuses a part file by its footer alone, no row is read; parts that were found good before cost one look at their size and time.

    Raises:
        RecordError: As for `read_table`.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    _check_footer(path, table, run, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2**16)
def _check_footer(path: Path, table: str, run: str, mtime_ns: int, size: int) -> None:  # noqa: ARG001 - time and size only tell files apart
    try:
        footer = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{path} is not a whole Parquet file: {error}") from error
    _check_metadata(path, footer.metadata or {}, table)
    if not _runs(footer) <= {run}:
        raise RecordError(f"{path} holds rows of another run than {run}")


def _runs(footer: pq.FileMetaData) -> set[str]:
    """Least and greatest run of each row group, as far as the file says."""
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    known = [column.statistics for column in columns if column.path_in_schema == "run" and column.statistics is not None]
    return {bound for statistics in known if statistics.has_min_max for bound in (statistics.min, statistics.max)}


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
    for part in reversed(parts(directory, table, run)):
        rows: list[dict[str, Any]] = read_part(part, table, run).to_pylist()
        if rows:  # a part that was taken back has none
            return rows[-1]
    return None


def _numbers(text: str) -> dict[str, float]:
    # NaN and infinity are written as strings, see schema.py.
    return {name: float(value) for name, value in json.loads(text).items()}


def _check_metadata(path: Path, metadata: Mapping[bytes, bytes], table: str) -> None:
    found = metadata.get(b"fat_ray.table", b"").decode(errors="replace")
    if found != table:
        raise RecordError(f"{path} is not a part of the table {table}: its metadata says fat_ray.table = {found or 'nothing'}")
    check_version(path, metadata.get(b"fat_ray.schema", b"").decode(errors="replace"))


def _conform(path: Path, found: pa.Table, schema: pa.Schema) -> pa.Table:
    # A column that an older minor version did not have is null; types never change within a major version.
    try:
        arrays = [
            found[field.name].cast(field.type) if field.name in found.column_names else pa.nulls(len(found), field.type) for field in schema
        ]
    except pa.ArrowException as error:
        raise RecordError(f"{path} has a column of another type than this version knows: {error}") from error
    return pa.Table.from_arrays(arrays, schema=schema)
