"""The comparison as rows of text, shared by the terminal and the report."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from fat_ray.analysis.compare import FULL, Comparison
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


@dataclass(frozen=True)
class TitledTable:
    """A table, what it is, and how many of its rows are not shown."""

    title: str
    table: TextTable
    hidden: int


class Rows(StrEnum):
    """What a row is: a setting with its seeds, a single run, or first the ones, then the others."""

    SETTINGS = "settings"
    RUNS = "runs"
    ALL = "all"


def tables(comparison: Comparison, rows: Rows = Rows.ALL, limit: int | None = None) -> list[TitledTable]:
    """The tables of a comparison.

    Args:
        comparison: The comparison.
        rows: What the rows are; of settings nothing is said unless one of them has several seeds, or they were asked for.
        limit: Rows of each; None: all.
    """
    found = []
    hidden = [0 if limit is None else max(0, frame.height - limit) for frame in (comparison.settings, comparison.runs)]
    if rows is Rows.SETTINGS or (rows is Rows.ALL and comparison.several_seeds):
        title = "Settings: mean ± sample standard deviation over completed seeds"
        found.append(TitledTable(title, setting_table(comparison, limit), hidden[0]))
    if rows is not Rows.RUNS and comparison.several_seeds:
        found.append(TitledTable(f"Over seeds: {seed_title(comparison)}", seed_table(comparison, limit), hidden[0]))
    if rows is not Rows.SETTINGS:
        found.append(TitledTable("Runs", run_table(comparison, limit), hidden[1]))
    return found


def run_table(comparison: Comparison, limit: int | None = None) -> TextTable:
    """One row per run, then what a constant prediction scores."""
    return _table(comparison, comparison.runs.head(limit or comparison.runs.height).iter_rows(named=True), "run", _single)


def setting_table(comparison: Comparison, limit: int | None = None) -> TextTable:
    """One row per setting: mean ± sample standard deviation over its completed seeds."""
    return _table(comparison, comparison.settings.head(limit or comparison.settings.height).iter_rows(named=True), "setting", _mean)


def seed_title(comparison: Comparison) -> str:
    """What `seed_table` shows."""
    return f"{measure_name(comparison)}, mean and difference to {comparison.options.baseline} by seed, each with its 95 % BCa interval"


def seed_table(comparison: Comparison, limit: int | None = None) -> TextTable:
    """One row per setting: what its seeds say, and how sure that is."""
    columns = _seed_columns(comparison)
    shown = comparison.settings.head(limit or comparison.settings.height)
    rows = [TextRow([column.cell(row) for column in columns], _kind(row)) for row in shown.iter_rows(named=True)]
    return TextTable(columns, rows)


def measure_name(comparison: Comparison) -> str:
    """What is compared over seeds, as people call it: test F1, flops."""
    measure = comparison.measure
    return measure.name if measure.is_cost else f"{measure.split.replace('_', '-')} {text.metric_name(measure.metric)}"


def value_text(comparison: Comparison, value: float | None) -> str:
    """A value of what is compared."""
    return text.quantity(value) if comparison.measure.is_cost else text.score(value)


def difference_text(comparison: Comparison, value: float | None) -> str:
    """A difference of what is compared, with its sign."""
    if not comparison.measure.is_cost or value is None:
        return text.difference(value)
    return f"{'+' if value >= 0 else text.MINUS}{text.quantity(abs(value))}"


def p_text(value: float | None) -> str:
    """A p value with two significant digits."""
    return text.DASH if value is None else "<0.001" if value < 0.001 else f"{value:.2g}"


def _seed_columns(comparison: Comparison) -> list[Column]:
    name = measure_name(comparison).replace(" ", "\n", 1)

    def interval(row: Row, name: str, write: Callable[[Comparison, float | None], str]) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return text.DASH if low is None else f"[{write(comparison, low)}, {write(comparison, high)}]"

    def number(title: str, priority: int, cell: Callable[[Row], str]) -> Column:
        return Column(title, numeric=True, priority=priority, cell=cell)

    def words(row: Row, key: str) -> str:
        return text.DASH if row[key] is None else str(row[key])

    return [
        *([Column("study", numeric=False, priority=1, cell=lambda row: str(row["study"]))] if len(comparison.studies) > 1 else []),
        Column("setting", numeric=False, priority=0, cell=lambda row: str(row["setting"])),
        number("n", 0, lambda row: str(row["n"] or 0)),
        number(name, 0, lambda row: value_text(comparison, row["value_mean"])),
        number("95 %\ninterval", 2, lambda row: interval(row, "value", value_text)),
        number(f"Δ vs\n{comparison.options.baseline}", 0, lambda row: difference_text(comparison, row["difference_mean"])),
        number("95 %\ninterval", 1, lambda row: interval(row, "difference", difference_text)),
        number("pairs", 8, lambda row: str(row["pairs"] or 0)),
        number("effect\ng_z", 5, lambda row: text.DASH if row["effect"] is None else f"{row['effect']:+.1f}".replace("-", text.MINUS)),
        number("p", 6, lambda row: p_text(row["p"])),
        number("p\nHolm", 0, lambda row: p_text(row["p_holm"])),
        number("FLOPs\nratio", 4, lambda row: text.ratio(row["flops_ratio_mean"])),
        Column("Δ", numeric=False, priority=0, cell=lambda row: words(row, "verdict")),
        *([_margin_column(comparison.options.margin, words)] if comparison.options.margin is not None else []),
    ]


def _margin_column(margin: float, words: Callable[[Row, str], str]) -> Column:
    return Column(f"within\n±{margin:g}", numeric=False, priority=0, cell=lambda row: words(row, "equivalence"))


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
    base = "full" if comparison.options.baseline == FULL else "base"
    return [
        Column("rank", numeric=True, priority=0, cell=_rank),
        *([Column("study", numeric=False, priority=1, cell=lambda row: str(row["study"]))] if several else []),
        Column(name, numeric=False, priority=0, cell=lambda row: str(row[name])),
        *_params(comparison),
        Column("status" if name == "run" else "seeds", numeric=False, priority=1, cell=state),
        number(f"val {metric}\n{'last' if name == 'run' else 'at budget'}", 0, "val_last", text.score),
        number(f"Δ {metric}\nvs {base}", 4, "delta_val", text.difference),
        Column("best\n@ step", numeric=True, priority=5, cell=_best) if name == "run" else number("val\nbest", 5, "val_best", text.score),
        number(f"test {metric}\nat budget", 1, "test_last", text.score),
        number("zero-\nshot", 2, "zero_shot_last", text.score),
        number(f"{MEAN_ACTIVE}\nof all", 1, "mean_active_fraction", text.percent),
        number("final\nactive", 7, "final_active_fraction", text.percent),
        number(f"FLOPs\nvs {base}", 3, "flops_ratio", text.ratio),
        number(f"time\nvs {base}", 5, "train_s_ratio", text.ratio),
        number(f"sent\nvs {base}", 6, "comm_bytes_ratio", text.ratio),
        number(f"optimizer\nvs {base}", 9, "mean_optimizer_bytes_ratio", text.ratio),
        number(f"memory\nvs {base}", 8, "mean_peak_memory_bytes_ratio", text.ratio),
        number(MEAN_ACTIVE, 8, "mean_active", text.quantity),
        number("train\ntime", 6, "train_s", text.seconds),
        number("worker\ntime", 11, "worker_s", text.seconds),
        number("FLOPs", 10, "flops", text.quantity),
        number("bytes\nsent", 12, "comm_bytes", text.quantity),
        number("peak\nmemory", 12, "peak_memory_bytes", text.quantity),
    ]


def _params(comparison: Comparison) -> list[Column]:
    searched = dict.fromkeys(key for study in comparison.studies for key in study.spec["search"])
    recorded = dict.fromkeys(key for row in comparison.runs["params_json"].unique(maintain_order=True) for key in json.loads(row))
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
