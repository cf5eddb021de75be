"""The command `compare`: its options, and a comparison as text in each format."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fat_ray.analysis.compare import Options

TABLE_ROWS = 30
"""Rows of each table on a terminal, unless another limit is given."""


class Format(StrEnum):
    """How a comparison is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    LATEX = "latex"


class Rows(StrEnum):
    """What its rows are."""

    SETTINGS = "settings"
    RUNS = "runs"
    ALL = "all"


FormatOption = Annotated[Format, typer.Option("--format", help="How the comparison is written to stdout.")]
Metric = Annotated[
    str | None, typer.Option("--metric", metavar="SPLIT/METRIC|COST", help="What seeds are compared by; default: the study's val metric.")
]
Baseline = Annotated[str, typer.Option("--baseline", metavar="NAME", help="Baseline, or another setting, that all are compared with.")]
Margin = Annotated[
    float | None, typer.Option("--margin", metavar="X", help="Also say who is within this much of the baseline, and at what cost.")
]
Where = Annotated[
    list[str], typer.Option("--where", metavar="CONDITION", help="Only runs such as 'freeze.threshold < 0'; repeatable, all must hold.")
]
Statuses = Annotated[list[str], typer.Option("--status", metavar="STATUS", help="Only runs that ended so; repeatable, one must hold.")]
Sort = Annotated[str | None, typer.Option("--sort", metavar="FIELD[:desc]", help="Order of the rows; default: by rank.")]
RowsOption = Annotated[Rows, typer.Option("--rows", help="What the rows are; csv has one kind: runs, unless settings are asked for.")]
Limit = Annotated[int | None, typer.Option("--limit", min=0, help="Rows of each table; 0: all. Default: 30 in a table, else all.")]
Search = Annotated[bool, typer.Option("--search", help="Also which settings matter, which act together, and the volume of the front.")]


def comparison_text(
    places: Sequence[str | Path],
    format_: Format = Format.TABLE,
    options: "Options | None" = None,
    rows: Rows = Rows.ALL,
    limit: int | None = None,
    *,
    search: bool = False,
) -> tuple[str, list[str]]:
    """A comparison as it is printed, and what of its studies could not be read.

    Args:
        places: As for `analysis.compare.compare`, as the options.
        format_: How it is written.
        options: What is asked.
        rows: What the rows are.
        limit: Rows of each table; None: `TABLE_ROWS` of a table, else all; 0: all.
        search: Whether to say also what the searches found out.

    Raises:
        RecordError: As for `compare`.
        InputError: As for `compare`.
    """
    from fat_ray.analysis import markup, render, table
    from fat_ray.analysis.compare import Options, compare
    from fat_ray.api import search_insights

    if format_ is Format.TABLE and limit is None:
        limit = TABLE_ROWS
    if format_ in (Format.TABLE, Format.MARKDOWN, Format.LATEX) and limit:
        options = replace(options or Options(), intervals=limit)
    comparison = compare(places, options)
    insights, shown = search_insights(comparison) if search else [], table.Rows(rows)
    match format_:
        case Format.TABLE:
            text = render.as_terminal(comparison, shown, limit or None, insights)
        case Format.JSON:
            text = render.as_json(comparison, insights)
        case Format.CSV:
            text = render.as_csv(comparison, shown)
        case Format.MARKDOWN:
            text = markup.as_markdown(comparison, shown, limit or None, insights)
        case Format.LATEX:
            text = markup.as_latex(comparison, shown, limit or None, insights)
    return text.rstrip("\n"), comparison.damage
