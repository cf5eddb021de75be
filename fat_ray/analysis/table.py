"""The comparison as rows of text, shared by the terminal and the report."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fat_ray.analysis.compare import Comparison
from fat_ray.view import text

Row = dict[str, Any]
PARTIAL = "†"
FRONT = "★"
MEAN_ACTIVE = "N\N{COMBINING MACRON}"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: Heading; a line break stands where it may wrap.
        numeric: Whether it is set flush right.
        priority: Columns of the largest number are left out first where there is little room.
        cell: Text of a row.
    """

    title: str
    numeric: bool
    priority: int
    cell: Callable[[Row], str]


@dataclass(frozen=True)
class TextRow:
    """Cells in the order of the columns, and what kind of row it is: ``front``, ``ranked``, ``partial`` or ``reference``."""

    cells: list[str]
    kind: str


@dataclass(frozen=True)
class TextTable:
    """A table ready to be set."""

    columns: list[Column]
    rows: list[TextRow]


def run_table(comparison: Comparison) -> TextTable:
    """One row per run, then what a constant prediction scores."""
    return _table(comparison, comparison.runs.iter_rows(named=True), "run", _single)


def setting_table(comparison: Comparison) -> TextTable:
    """One row per setting: mean ± sample standard deviation over its completed seeds."""
    return _table(comparison, comparison.settings.iter_rows(named=True), "setting", _mean)


Measure = Callable[[Row, str, Callable[[float | None], str]], str]


def _single(row: Row, name: str, write: Callable[[float | None], str]) -> str:
    value = row.get(name)
    return write(value) + (PARTIAL if value is not None and row.get("partial") else "")


def _mean(row: Row, name: str, write: Callable[[float | None], str]) -> str:
    if name in row:  # the reference row has no seeds
        return write(row[name])
    deviation = row.get(f"{name}_sd")
    return write(row.get(f"{name}_mean")) + ("" if deviation is None else f" ± {write(deviation).lstrip('+')}")


def _table(comparison: Comparison, rows: Iterable[Row], name: str, measure: Measure) -> TextTable:
    columns = _columns(comparison, name, measure)
    known = [{**row, "params": json.loads(row["params_json"])} for row in rows]
    references = [
        {"study": r["study"], name: "constant prediction", "val_last": r["val"], "test_last": r["test"], "zero_shot_last": r["zero_shot"]}
        for r in comparison.references.iter_rows(named=True)
    ]
    kinds = [_kind(row) for row in known] + ["reference"] * len(references)
    return TextTable(
        columns, [TextRow([column.cell(row) for column in columns], kind) for row, kind in zip([*known, *references], kinds, strict=True)]
    )


def _kind(row: Row) -> str:
    if row["pareto_rank"] is None:
        return "partial"
    return "front" if row["on_front"] else "ranked"


def _columns(comparison: Comparison, name: str, measure: Measure) -> list[Column]:
    metric = text.metric_name(comparison.metric)

    def number(title: str, priority: int, key: str, write: Callable[[float | None], str]) -> Column:
        return Column(title, numeric=True, priority=priority, cell=lambda row: measure(row, key, write))

    several = len(comparison.studies) > 1
    state = _status if name == "run" else _seeds
    return [
        Column("rank", numeric=True, priority=0, cell=_rank),
        *([Column("study", numeric=False, priority=1, cell=lambda row: str(row["study"]))] if several else []),
        Column(name, numeric=False, priority=0, cell=lambda row: str(row[name])),
        *_params(comparison),
        Column("status" if name == "run" else "seeds", numeric=False, priority=1, cell=state),
        number(f"val {metric}\n{'last' if name == 'run' else 'at budget'}", 0, "val_last", text.score),
        number(f"Δ {metric}\nvs full", 4, "delta_val", text.difference),
        Column("best\n@ step", numeric=True, priority=5, cell=_best) if name == "run" else number("val\nbest", 5, "val_best", text.score),
        number(f"test {metric}\nat budget", 1, "test_last", text.score),
        number("zero-\nshot", 2, "zero_shot_last", text.score),
        number(f"{MEAN_ACTIVE}\nof all", 1, "mean_active_fraction", text.percent),
        number("final\nactive", 7, "final_active_fraction", text.percent),
        number("FLOPs\nvs full", 3, "flops_ratio", text.ratio),
        number("time\nvs full", 5, "train_s_ratio", text.ratio),
        number("sent\nvs full", 6, "comm_bytes_ratio", text.ratio),
        number("optimizer\nvs full", 9, "mean_optimizer_bytes_ratio", text.ratio),
        number("memory\nvs full", 8, "mean_peak_memory_bytes_ratio", text.ratio),
        number(MEAN_ACTIVE, 8, "mean_active", text.quantity),
        number("train\ntime", 6, "train_s", text.seconds),
        number("worker\ntime", 11, "worker_s", text.seconds),
        number("FLOPs", 10, "flops", text.quantity),
        number("bytes\nsent", 12, "comm_bytes", text.quantity),
        number("peak\nmemory", 12, "peak_memory_bytes", text.quantity),
    ]


def _params(comparison: Comparison) -> list[Column]:
    searched = dict.fromkeys(key for study in comparison.studies for key in study.spec["search"])
    recorded = dict.fromkeys(key for row in comparison.runs["params_json"] for key in json.loads(row))
    short = text.short_names({**searched, **recorded})
    return [Column(title.replace(".", "\n."), numeric=True, priority=3, cell=partial(_param, key)) for key, title in short.items()]


def _param(key: str, row: Row) -> str:
    params = row.get("params", {})
    return text.scalar(params[key]) if key in params else ""


def _rank(row: Row) -> str:
    rank = row.get("pareto_rank")
    return "" if rank is None else f"{FRONT if row['on_front'] else ''} {rank}".strip()


def _status(row: Row) -> str:
    status = str(row.get("status", "reference"))
    return f"{status} @ {row['steps'] or 0}" if row.get("partial") else status


def _seeds(row: Row) -> str:
    if "runs" not in row:
        return "reference"
    return f"n = {row['completed']}" + ("" if row["completed"] == row["runs"] else f" of {row['runs']}")


def _best(row: Row) -> str:
    if row.get("val_best") is None:
        return text.DASH
    return f"{_single(row, 'val_best', text.score)} @ {row['val_best_step']}"
