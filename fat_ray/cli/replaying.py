"""The commands `replay` and `rerun`, and `compare --replay`: their options, and what they print."""

import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fat_ray.errors import InputError


class ReplayFormat(StrEnum):
    """How a replay is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


Place = Annotated[Path, typer.Argument(metavar="DIR|DIR/RUN", help="Directory of a study, or a run in it.", show_default=False)]
Values = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUES",
        help="Values of a field: one, [a list], or low:high:step; repeatable, all combinations are replayed. "
        "Default: freeze.threshold=-1.5:0.5:0.1.",
    ),
]
Run = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="The run whose drift is replayed; default: the first that froze nothing.")
]
FormatOption = Annotated[ReplayFormat, typer.Option("--format", help="How it is written to stdout.")]
Sort = Annotated[str, typer.Option("--sort", metavar="COLUMN[:desc]", help="Order of the settings.")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="Rows of the table; 0: all.")]
Recorded = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run, such as t0003-s0.", show_default=False)]
RerunOut = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Directory that gets the repetition's own; default: it is thrown away.")
]
Check = Annotated[bool, typer.Option("--replay", help="Instead: how far real schedules were from those that a replay foretold.")]


def replay_text(place: Path, run: str | None, values: Sequence[str], format_: ReplayFormat, sort: str, limit: int) -> str:
    """A replay as it is printed; arguments as the options.

    Raises:
        InputError: Something given is wrong.
        RecordError: Records cannot be read.
    """
    from fat_ray.analysis import replay
    from fat_ray.records.manifest import read_manifest
    from fat_ray.replay.reference import locate, reference

    directory, chosen = locate(place, run)
    wanted = replay.values_of(values or [f"{key}={value}" for key, value in replay.DEFAULT.items()])
    replayed = replay.replay_settings(read_manifest(directory).name, reference(directory, chosen), wanted)
    order = replay.ordered(replayed, sort)
    match format_:
        case ReplayFormat.JSON:
            return replay.as_json(replayed, order)
        case ReplayFormat.CSV:
            return replay.as_csv(replayed, order).rstrip("\n")
        case ReplayFormat.TABLE:
            return replay.as_table(replayed, order, limit, _width())


def check_text(places: Sequence[str | Path], format_: str) -> str:
    """How far replays of some studies' runs were off, as it is printed: ``table``, ``json`` or ``csv``.

    Raises:
        InputError: A study has no run to replay, or the format is another one.
        RecordError: Records cannot be read.
    """
    from fat_ray.analysis import replay_check

    if format_ not in set(ReplayFormat):
        raise InputError(f"--format {format_}: --replay is written as {', '.join(ReplayFormat)}")
    found = replay_check.check([Path(place) for place in places])
    match ReplayFormat(format_):
        case ReplayFormat.JSON:
            return replay_check.as_json(found)
        case ReplayFormat.CSV:
            return replay_check.as_csv(found).rstrip("\n")
        case ReplayFormat.TABLE:
            return replay_check.as_table(found, _width())


def _width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size((120, 24)).columns
