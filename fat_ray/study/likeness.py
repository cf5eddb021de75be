"""Whether two recorded runs are equal to the bit, and if not, where they part and what else differs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl

from fat_ray.records.reader import read_table, run_start

_KEYS = {
    "groups": ("group",),
    "layers": ("place",),
    "steps": ("step",),
    "drift": ("step", "update", "group"),
    "freezes": ("step", "event", "group"),
    "events": ("step", "event"),
    "evals": ("step", "split", "metric"),
}
"""Tables that are compared, and what their rows are about."""

_MEASURED = ("peak_memory_bytes",)
"""Columns that no run repeats, beside seconds."""


@dataclass(frozen=True)
class Difference:
    """A column in which two runs differ.

    Attributes:
        table: The table.
        column: The column; ``rows`` where one run has rows that the other has not.
        place: The first row that differs: its keys.
        recorded: Its value in the recorded run; for missing rows, whether it is there.
        repeated: Its value in the repeated one, likewise.
        count: Rows that differ.
        rows: Rows that were compared.
    """

    table: str
    column: str
    place: Mapping[str, Any]
    recorded: Any
    repeated: Any
    count: int
    rows: int

    def __str__(self) -> str:
        where = "".join(f", {key} {value}" for key, value in self.place.items() if value is not None)
        return f"{self.table}.{self.column}{where}: {self.recorded!r} recorded, {self.repeated!r} now ({self.count} of {self.rows} rows)"


def differences(recorded: Path, repeated: Path, run: str, steps: int) -> tuple[list[Difference], dict[str, int]]:
    """Compares what two runs of the same id computed, up to a step.

    Args:
        recorded: Directory of the one study.
        repeated: Directory of the other.
        run: Id of the run in both.
        steps: Steps that are compared.

    Returns:
        What differs, in the order of the steps; and for each table how many rows were compared.

    Raises:
        RecordError: Records cannot be read.
    """
    found, rows = list[Difference](), dict[str, int]()
    for table, keys in _KEYS.items():
        before, now = (_frame(directory, table, run, steps) for directory in (recorded, repeated))
        rows[table] = before.height
        found += _compared(table, keys, before, now)
    return sorted(found, key=lambda difference: difference.place.get("step") or 0), rows


def _frame(directory: Path, table: str, run: str, steps: int) -> pl.DataFrame:
    """What was computed: without seconds and memory, and nothing that came after so many steps."""
    frame = cast("pl.DataFrame", pl.from_arrow(read_table(directory, table, run)))
    names = [name for name in frame.columns if name != "run" and not name.endswith("_s") and name not in _MEASURED]
    if "step" in names:  # an evaluation comes after its steps
        frame = frame.filter(pl.col("step") <= steps if table == "evals" else pl.col("step") < steps)
    return frame.select(names).unique(_KEYS[table], keep="last", maintain_order=True)  # version 1.0 wrote rows of a resumed run again


def _compared(table: str, keys: tuple[str, ...], before: pl.DataFrame, now: pl.DataFrame) -> Iterator[Difference]:
    alone = pl.concat(
        [
            before.join(now, on=keys, how="anti").select(*keys, pl.lit(value=True).alias("recorded")),
            now.join(before, on=keys, how="anti").select(*keys, pl.lit(value=False).alias("recorded")),
        ]
    ).sort(keys)
    if alone.height:
        first = alone.row(0, named=True)
        there = first.pop("recorded")
        yield Difference(table, "rows", first, there, not there, alone.height, before.height)
    both = before.join(now, on=keys, suffix=" now").sort(keys)
    for column in (name for name in before.columns if name not in keys):
        changed = both.filter(pl.col(column).ne_missing(pl.col(f"{column} now")))
        if changed.height:
            first = changed.row(0, named=True)
            place = {key: first[key] for key in keys}
            yield Difference(table, column, place, first[column], first[f"{column} now"], changed.height, both.height)


def environment_changes(recorded: Path, repeated: Path, run: str) -> list[tuple[str, Any, Any]]:
    """Versions and facts about the machine that differ: name, as it was recorded, as it is now. What older records do not tell is left out.

    Raises:
        RecordError: Records cannot be read.
    """
    before, now = (_flat(run_start(directory, run).environment) for directory in (recorded, repeated))
    return [(name, value, now[name]) for name, value in before.items() if name in now and now[name] != value]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
