"""The rows behind the charts of a search: which settings matter, trials as lines through all axes, and a metric over two settings."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from fat_ray.analysis.compare import Comparison
from fat_ray.analysis.insight import SearchInsight
from fat_ray.analysis.series import Rows, describe_params
from fat_ray.view import text

THRESHOLD, WINDOW = "freeze.threshold", "freeze.every"
_COLUMNS, _ROWS, BANDS = 60, 40, 7

Params = dict[str, Any]


def trials(comparison: Comparison) -> list[tuple[dict[str, Any], Params]]:
    """The ranked settings of the search, as rows of `settings`, with their parameters."""
    ranked = comparison.settings.filter((pl.col("role") == "search") & pl.col("pareto_rank").is_not_null())
    return [(row, json.loads(row["params_json"])) for row in ranked.iter_rows(named=True)]


def importance(insight: SearchInsight) -> Rows:
    """The share of each setting for each objective."""
    names = text.short_names({name for one in insight.importances for name in one.shares})
    return [
        {"setting": names[name], "objective": one.objective, "share": share}
        for one in insight.importances
        for name, share in one.shares.items()
    ]


def parallel(comparison: Comparison) -> tuple[list[str], Rows, Rows]:
    """Trials as lines.

    Returns:
        The axes from left to right: searched settings, then objectives; a row per trial and axis, its height from 0 to 1; and the labels
        of the axes' ends, or of all values that are no numbers.
    """
    found, space = trials(comparison), comparison.studies[0].spec["search"]
    names, objectives = text.short_names(space), [objective.metric for objective in comparison.objectives]
    axes = [(names[key], [params.get(key) for _, params in found], bool(space[key].get("log"))) for key in space]
    axes += [(name, [row["objective_means"][at] for row, _ in found], False) for at, name in enumerate(objectives)]
    lines, labels = Rows(), Rows()
    for axis, values, log in axes:
        heights, ends = _heights(values, log=log)
        labels += [{"axis": axis, "height": height, "label": label} for label, height in ends]
        for (row, _), value, height in zip(found, values, heights, strict=True):
            if height is not None:
                lines.append({"axis": axis, "height": round(height, 4), "shown": _label(value), **_line(row)})
    return [axis for axis, *_ in axes], lines, labels


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {"trial": row["setting"], "value": row["objective_means"][0], "front": bool(row["on_front"])}


def _heights(values: Sequence[Any], *, log: bool) -> tuple[list[float | None], list[tuple[str, float]]]:
    """Places from 0 to 1, None for a trial without the setting, and what the axis is labelled with."""
    known = [value for value in values if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        levels = sorted({text.scalar(value) for value in known})
        places = {level: at / max(len(levels) - 1, 1) for at, level in enumerate(levels)}
        return [None if value is None else places[text.scalar(value)] for value in values], list(places.items())
    low, high = min(known, default=0.0), max(known, default=0.0)
    if low == high:
        return [None if value is None else 0.5 for value in values], [(_label(low), 0.5)] if known else []
    heights = [None if value is None else _share(value, low, high, log=log) for value in values]
    return heights, [(_label(low), 0.0), (_label(high), 1.0)]


def _label(value: Any) -> str:
    return text.quantity(value) if isinstance(value, float) and abs(value) >= 1000 else text.scalar(value)


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def why_no_map(comparison: Comparison) -> str:
    """Why the metric is not drawn over threshold and window; empty when it can be."""
    space = comparison.studies[0].spec["search"]
    lacking = [key for key in (THRESHOLD, WINDOW) if key not in space]
    if lacking:
        return f"The study did not search {text.listing(lacking)}."
    places = {(params[THRESHOLD], params[WINDOW]) for _, params in _placed(comparison)}
    if len({x for x, _ in places}) < 2 or len({y for _, y in places}) < 2 or len(places) < 4:
        return "Fewer than four completed trials lie at different thresholds and windows."
    return ""


def _placed(comparison: Comparison) -> list[tuple[dict[str, Any], Params]]:
    return [
        (row, params) for row, params in trials(comparison) if THRESHOLD in params and WINDOW in params and row["val_last_mean"] is not None
    ]


def window_share(trials: int) -> float:
    """Width of the map's Gaussian window as a share of each axis: Scott's rule (1992) for points spread evenly over two axes."""
    return float(trials ** (-1 / 6) / math.sqrt(12))


def landscape(comparison: Comparison) -> tuple[Rows, Rows]:
    """The shown metric over threshold and window.

    Returns:
        Cells: x, x2, y, y2 and the mean of the trials near by, weighted by a Gaussian window (Nadaraya and Watson, 1964), where a trial
        lies within two widths; neighbours in a row that fall into the same of `BANDS` bands are one cell. And the trials themselves.
    """
    placed = _placed(comparison)
    points = [
        {
            "trial": row["setting"],
            "x": params[THRESHOLD],
            "y": params[WINDOW],
            "value": row["val_last_mean"],
            "params": describe_params(row["params_json"]),
        }
        for row, params in placed
    ]
    at = np.array([[point["x"], point["y"]] for point in points], dtype=float)
    values = np.array([point["value"] for point in points])
    low, span = at.min(axis=0), np.ptp(at, axis=0)
    edges_x, edges_y = np.linspace(0, 1, _COLUMNS + 1), np.linspace(0, 1, _ROWS + 1)
    grid = np.stack(np.meshgrid((edges_x[1:] + edges_x[:-1]) / 2, (edges_y[1:] + edges_y[:-1]) / 2), axis=-1)
    distance = (((grid[:, :, None, :] - (at - low) / span) / window_share(len(points))) ** 2).sum(-1)
    weights = np.exp(-distance / 2)
    means = np.where(distance.min(-1) <= 4, (weights * values).sum(-1) / np.maximum(weights.sum(-1), 1e-9), np.nan)
    return _cells(means, low[0] + edges_x * span[0], low[1] + edges_y * span[1], values), points


def _cells(means: Any, edges_x: Any, edges_y: Any, values: Any) -> Rows:
    """Cells of equal bands in each row, as few as possible."""
    lowest, range_ = values.min(), np.ptp(values) or 1.0
    bands = np.clip(np.nan_to_num((means - lowest) / range_, nan=-1.0) * BANDS, None, BANDS - 1)
    bands = np.where(np.isnan(means), -1, np.floor(bands)).astype(int)
    cells = Rows()
    for row in range(_ROWS):
        starts = np.flatnonzero(np.diff(bands[row], prepend=-2))
        for start, end in zip(starts, [*starts[1:], _COLUMNS], strict=True):
            if bands[row, start] >= 0:
                x, x2, y, y2 = (float(f"{edge:.6g}") for edge in (edges_x[start], edges_x[end], edges_y[row], edges_y[row + 1]))
                cells.append({"x": x, "x2": x2, "y": y, "y2": y2, "value": float(f"{means[row, start:end].mean():.6g}")})
    return cells
