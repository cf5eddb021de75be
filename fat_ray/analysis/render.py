"""The comparison on a terminal, as JSON and as CSV."""

import csv
import io
import json
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fat_ray.analysis.compare import Comparison
from fat_ray.analysis.table import FRONT, MEAN_ACTIVE, PARTIAL, TextTable, run_table, setting_table
from fat_ray.view import text

JSON_VERSION = 1
"""Raised when a key of the JSON document changes its meaning or goes; new keys do not raise it."""

_STYLES = {"front": "bold", "ranked": "", "partial": "dim", "reference": "italic"}


def as_table(comparison: Comparison, console: Console) -> RenderableType:
    """The comparison for a terminal: as many columns as fit, the least important ones left out first."""
    parts: list[RenderableType] = []
    if comparison.several_seeds:
        parts += [
            Text("Settings: mean ± sample standard deviation over completed seeds", style="bold"),
            *_fit(setting_table(comparison), console),
        ]
        parts += [Text("Runs", style="bold")]
    parts += _fit(run_table(comparison), console)
    return Group(*parts, *(Text(line, style="dim") for line in [*explanations(comparison), *comparison.notes]))


def explanations(comparison: Comparison) -> list[str]:
    """What the marks and words of the table mean."""
    objectives = text.listing(f"{objective.direction} {objective.metric}" for objective in comparison.objectives)
    lines = [
        f"{FRONT}: Pareto front of completed runs: {objectives}.",
        (
            "last: at the latest evaluation; at budget: after the last planned step, so of completed runs only;"
            " best: the most favourable evaluation."
        ),
        f"{MEAN_ACTIVE}: mean active parameters over the steps; vs full: against full fine-tuning (`none`) with the same seed.",
    ]
    if bool(comparison.runs["partial"].any()):
        lines.append(f"{PARTIAL}: partial; the run did not complete; the value is not comparable and not ranked.")
    return lines


def _fit(table: TextTable, console: Console) -> list[RenderableType]:
    """The table without the columns that do not fit, and a line that names those."""
    shown = list(range(len(table.columns)))
    used = [i for i in shown if any(row.cells[i] not in ("", text.DASH) for row in table.rows)]
    shown, left_out = used or shown, list[int]()
    unlimited = console.options.update(width=10_000)
    while len(shown) > 3 and console.measure(_rich(table, shown), options=unlimited).maximum > console.width:
        worst = max(shown, key=lambda i: (table.columns[i].priority, i))
        shown.remove(worst)
        left_out.append(worst)
    parts: list[RenderableType] = [_rich(table, shown)]
    if left_out:
        names = ", ".join(table.columns[i].title.replace("\n.", ".").replace("\n", " ") for i in sorted(left_out))
        parts.append(Text(f"Not shown at this width: {names} (see --format json).", style="dim"))
    return parts


def _rich(table: TextTable, shown: list[int]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for column in (table.columns[i] for i in shown):
        made.add_column(Text(column.title), justify="right" if column.numeric else "left", vertical="bottom", no_wrap=True)
    for row in table.rows:
        made.add_row(*(Text(row.cells[i]) for i in shown), style=_STYLES[row.kind])
    return made


def as_document(comparison: Comparison) -> dict[str, Any]:
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
    }


def as_json(comparison: Comparison) -> str:
    """`as_document` as text."""
    return json.dumps(as_document(comparison), indent=2, ensure_ascii=False, allow_nan=False)


def as_csv(comparison: Comparison) -> str:
    """One line per run with the keys of the JSON document's runs; settings as `params.<key>`; the constant prediction last."""
    document = as_document(comparison)
    keys = list(dict.fromkeys(key for run in document["runs"] for key in run["params"]))
    columns = [name for name in (*comparison.runs.columns,) if name != "params_json"]
    lines = [{**run, **{f"params.{key}": value for key, value in run["params"].items()}} for run in document["runs"]]
    for r in document["references"]:
        values = {"val_last": r["val"], "test_last": r["test"], "zero_shot_last": r["zero_shot"]}
        lines.append({"study": r["study"], "role": "reference", "label": r["label"], "setting": r["label"], **values})
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns, *(f"params.{key}" for key in keys)], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _with_params(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its settings as an object, where the frame has JSON text."""
    return {
        ("params" if key == "params_json" else key): (json.loads(value) if key == "params_json" else value) for key, value in row.items()
    }
