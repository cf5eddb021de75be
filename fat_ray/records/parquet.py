"""Writes a run's events as Parquet: one zstd part file per table and flush, whole or absent."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fat_ray.errors import RecordError
from fat_ray.events import Event, RunStart
from fat_ray.records.catalogue import COMPACTED
from fat_ray.records.files import write_atomic
from fat_ray.records.reader import next_part, num_compacted, part_number, parts, read_table, run_start
from fat_ray.records.schema import TABLES, Columns, columns


class ParquetSink:
    """The records of one run; the only writer of its part files. Part numbers continue those of an earlier attempt.

    Args:
        directory: The study's directory.
        run: Id of the run, which `RunStart` must repeat.
        start: How the run began, to go on with records that have it already; None: the first event is a `RunStart`.
    """

    def __init__(self, directory: str | Path, run: str, *, start: RunStart | None = None) -> None:
        self._directory = Path(directory)
        self._run = run
        self._start = start
        self._pending: dict[str, list[Columns]] = {table: [] for table in TABLES}
        self._next_part = {table: next_part(self._directory, table, run) for table in TABLES}

    def emit(self, event: Event) -> None:
        """Accepts one event; nothing is written before `flush`."""
        if isinstance(event, RunStart):
            assert event.run == self._run, f"events of {event.run} sent to the records of {self._run}"
            self._start = event
        assert self._start is not None, "RunStart comes first"
        for table, values in columns(event, self._start):
            assert values.keys() <= set(TABLES[table].names), f"{table} has no column {values.keys() - set(TABLES[table].names)}"
            self._pending[table].append(values)

    def flush(self) -> None:
        """Writes what is pending, table by table in the order of `TABLES`.

        Raises:
            RecordError: A part cannot be written, for example because no space is left. What was not written stays pending,
                so that a later flush neither loses nor repeats a row.
        """
        for table, pending in self._pending.items():
            if pending:
                self._write(table, pending)
                pending.clear()

    def close(self) -> None:
        """Flushes; nothing else is held."""
        self.flush()

    def position(self) -> dict[str, int]:
        """Number of parts by table."""
        return dict(self._next_part)

    def reaches(self, position: Mapping[str, int]) -> bool:
        """Whether all parts before a position are there: a power cut may take the newest away."""
        for table, count in position.items():
            there = range(num_compacted(self._directory, table, self._run))
            if not set(range(count)) <= {*there, *(part_number(part) for part in self._loose(table))}:
                return False
        return True

    def rewind(self, position: Mapping[str, int]) -> bool:
        """See `Sink.rewind`. The last tables go first, and of each the last part, so that readers find a shorter run at any moment.

        A part that is taken back becomes one without rows: no number is ever used for other rows, and no file vanishes under a reader.

        Raises:
            RecordError: A part cannot be written, or what must be taken back is compacted already, as only runs are that ended for good.
        """
        # Without groups it broke before it had any, and somebody else wrote its start (`study.verdict.record_end`).
        begun = all(read_table(self._directory, table, self._run).num_rows for table in ("groups", "runs"))
        kept = ("groups", "runs", "resumptions") if begun else ("resumptions",)
        tables = [table for table in reversed(TABLES) if table not in kept]
        if any(num_compacted(self._directory, table, self._run) > position.get(table, 0) for table in tables):
            raise RecordError(f"the records of {self._run} in {self._directory} are compacted: nothing of them can be taken back")
        for table in tables:
            for part in reversed(self._loose(table)):
                if part_number(part) >= position.get(table, 0):
                    _write_part(part, TABLES[table].empty_table())
        self._start = run_start(self._directory, self._run) if begun else None
        return begun

    def _loose(self, table: str) -> list[Path]:
        return [part for part in parts(self._directory, table, self._run) if part.parent.name != COMPACTED]

    def _write(self, table: str, pending: Sequence[Columns]) -> None:
        rows = _to_table(self._run, table, pending)
        if rows.num_rows:
            path = self._directory / "records" / table / self._run / f"part-{self._next_part[table]:05d}.parquet"
            _write_part(path, rows)
            self._next_part[table] += 1


def _write_part(path: Path, rows: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd", write_page_checksum=True)
    write_atomic(path, memoryview(buffer.getvalue()))


def _to_table(run: str, table: str, pending: Sequence[Columns]) -> pa.Table:
    schema = TABLES[table]
    lengths = [len(next(iter(values.values()))) for values in pending]
    arrays = [pa.array([run] * sum(lengths), schema.field("run").type)]
    for field in list(schema)[1:]:
        values: list[Any] = list(
            chain.from_iterable(given.get(field.name, (None,) * length) for given, length in zip(pending, lengths, strict=True))
        )
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
