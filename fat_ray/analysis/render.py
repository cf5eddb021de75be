"""The comparison on a terminal, as JSON and as CSV; for Markdown and LaTeX see `analysis.markup`."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fat_ray.analysis.compare import FULL, Comparison
from fat_ray.analysis.conclusions import conclusions
from fat_ray.analysis.insight import SearchInsight, insight_tables, sentences
from fat_ray.analysis.insight import as_document as insight_document
from fat_ray.analysis.statistics import ALPHA, CONFIDENCE, RESAMPLES
from fat_ray.analysis.table import FRONT, MEAN_ACTIVE, PARTIAL, Rows, TextTable, tables
from fat_ray.view import text

JSON_VERSION = 1
"""Raised when a key of the JSON document changes its meaning or goes; new keys do not raise it."""

_BETWEEN, _MARGIN = 2, 1  # of the box and padding below
_STYLES = {"front": "bold", "ranked": "", "partial": "dim", "reference": "italic"}


def as_terminal(comparison: Comparison, rows: Rows, limit: int | None, insights: Sequence[SearchInsight] = ()) -> str:
    """`as_table` as text as wide as this terminal, with its styles where stdout is one."""
    console = Console()
    with console.capture() as capture:
        console.print(as_table(comparison, console, rows, limit, insights))
    return capture.get()


def as_table(
    comparison: Comparison,
    console: Console,
    rows: Rows = Rows.ALL,
    limit: int | None = None,
    insights: Sequence[SearchInsight] = (),
) -> RenderableType:
    """The comparison for a terminal: as many columns as fit, the least important ones left out first.

    Args:
        comparison: The comparison.
        console: The terminal.
        rows: See `table.tables`, as the next.
        limit: Rows of each table.
        insights: What the searches say, to be shown too.
    """
    shown = [*tables(comparison, rows, limit), *insight_tables(insights)]
    parts: list[RenderableType] = []
    for titled in shown:
        parts += [Text(titled.title, style="bold")] if len(shown) > 1 else []
        parts += _fit(titled.table, console)
        if titled.hidden:
            parts.append(Text(f"and {text.count(titled.hidden, 'more row')} (--limit 0 shows all)", style="dim"))
    parts += [Text(line) for line in said(comparison, insights)]
    return Group(*parts, *(Text(line, style="dim") for line in [*explanations(comparison), *comparison.notes]))


def said(comparison: Comparison, insights: Sequence[SearchInsight] = ()) -> list[str]:
    """The sentences below the tables: what may be concluded, what the searches say, what could not be read."""
    objectives = [objective.metric for objective in comparison.objectives]
    return [*conclusions(comparison), *sentences(insights, objectives), *comparison.damage]


def explanations(comparison: Comparison) -> list[str]:
    """What the marks and words of the table mean."""
    objectives = text.listing(f"{objective.direction} {objective.metric}" for objective in comparison.objectives)
    lines = [
        f"{FRONT}: Pareto front of completed runs: {objectives}.",
        (
            "last: at the latest evaluation; at budget: after the last planned step, so of completed runs only;"
            " best: the most favourable evaluation."
        ),
        f"{MEAN_ACTIVE}: mean active parameters over the steps; {_against(comparison)}.",
    ]
    if bool(comparison.runs["partial"].any()):
        lines.append(f"{PARTIAL}: partial; the run did not complete; the value is not comparable and not ranked.")
    return lines


def _against(comparison: Comparison) -> str:
    if comparison.options.baseline == FULL:
        return "vs full: against full fine-tuning (`none`) with the same seed"
    return f"vs base: against {comparison.options.baseline} with the same seed"


def _fit(table: TextTable, console: Console) -> list[RenderableType]:
    """The table without the columns that do not fit, and a line that names those."""
    shown = list(range(len(table.columns)))
    used = [i for i in shown if any(row.cells[i] not in ("", text.DASH) for row in table.rows)]
    shown, left_out = used or shown, list[int]()
    widths = [_width(table, i) for i in range(len(table.columns))]
    while len(shown) > 3 and sum(widths[i] for i in shown) + _MARGIN > console.width:
        worst = max(shown, key=lambda i: (table.columns[i].priority, i))
        shown.remove(worst)
        left_out.append(worst)
    parts: list[RenderableType] = [_rich(table, shown)]
    if left_out:
        names = ", ".join(table.columns[i].title.replace("\n.", ".").replace("-\n", "-").replace("\n", " ") for i in sorted(left_out))
        parts.append(Text(f"Not shown at this width: {names} (see --format json).", style="dim"))
    return parts


def _width(table: TextTable, at: int) -> int:
    """Columns of the terminal that a column takes, with what stands between it and the next: rich measures as well, but takes long."""
    lines = [*table.columns[at].title.split("\n"), *(row.cells[at] for row in table.rows)]
    return max(map(cell_len, lines)) + _BETWEEN


def _rich(table: TextTable, shown: list[int]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for column in (table.columns[i] for i in shown):
        made.add_column(Text(column.title), justify="right" if column.numeric else "left", vertical="bottom", no_wrap=True)
    for row in table.rows:
        made.add_row(*(Text(row.cells[i]) for i in shown), style=_STYLES[row.kind])
    return made


def as_document(comparison: Comparison, insights: Sequence[SearchInsight] = ()) -> dict[str, Any]:
    """The comparison as plain JSON types; docs/compare.md describes every key. Unknown values are None, never NaN."""
    return {
        "format": "fat_ray.compare",
        "version": JSON_VERSION,
        "metric": comparison.metric,
        "objectives": [objective.model_dump(mode="json") for objective in comparison.objectives],
        "studies": [
            {"study": s.key, "directory": str(s.directory), "created_at": s.manifest.created_at.isoformat(), "seeds": s.spec["seeds"]}
            for s in comparison.studies
        ],
        "runs": [_with_params(row) for row in comparison.runs.iter_rows(named=True)],
        "settings": [_with_params(row) for row in comparison.settings.iter_rows(named=True)],
        "references": [{"label": "constant prediction", **row} for row in comparison.references.iter_rows(named=True)],
        "notes": comparison.notes,
        "statistics": _statistics(comparison),
        "conclusions": conclusions(comparison),
        "search": insight_document(insights),
        "damage": comparison.damage,
    }


def _statistics(comparison: Comparison) -> dict[str, Any]:
    """What the statistics of the settings are about, and how they were made."""
    return {
        "metric": comparison.measure.name,
        "direction": comparison.measure.direction,
        "baseline": comparison.options.baseline,
        "margin": comparison.options.margin,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "alpha": ALPHA,
        "tests": int(comparison.settings["p"].count()),
    }


def as_json(comparison: Comparison, insights: Sequence[SearchInsight] = ()) -> str:
    """`as_document` as text."""
    return json.dumps(as_document(comparison, insights), indent=2, ensure_ascii=False, allow_nan=False)


def as_csv(comparison: Comparison, rows: Rows = Rows.RUNS) -> str:
    """One line per run with the keys of the JSON document's runs, the constant prediction last; or one line per setting.

    Searched fields stand as `params.<key>`, lists as JSON.
    """
    document = as_document(comparison)
    if rows is Rows.SETTINGS:
        return _csv([name for name in comparison.settings.columns if name != "params_json"], document["settings"])
    columns = [name for name in comparison.runs.columns if name != "params_json"]
    lines = list(document["runs"])
    for r in document["references"]:
        values = {"val_last": r["val"], "test_last": r["test"], "zero_shot_last": r["zero_shot"]}
        lines.append({"study": r["study"], "role": "reference", "label": r["label"], "setting": r["label"], **values})
    return _csv(columns, lines)


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row.get("params", {})))
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns, *(f"params.{key}" for key in keys)], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        plain = {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
        writer.writerow({**plain, **{f"params.{key}": value for key, value in row.get("params", {}).items()}})
    return out.getvalue()


def _with_params(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its settings as an object, where the frame has JSON text."""
    return {
        ("params" if key == "params_json" else key): (json.loads(value) if key == "params_json" else value) for key, value in row.items()
    }
