"""The charts that compare runs and settings, as Vega-Lite specifications, independent of light and dark.

Colours are named by role (theme.py), as `range` entries of scales or as mark styles; the page puts in those of the theme that is shown.
"""

from typing import Any

import altair as alt

from fat_ray.analysis import series
from fat_ray.analysis.compare import FULL, Comparison
from fat_ray.analysis.marks import (
    NO_UNIT_AT_ZERO,
    Chart,
    color,
    constant,
    constant_note,
    data,
    finish,
    level,
    setting_tooltips,
    shape,
    steps_axis,
    y_axis,
)
from fat_ray.analysis.table import measure_name
from fat_ray.analysis.words import baseline
from fat_ray.view import text

_NAMED = 8  # settings of the front beyond which only the best and the baselines are named
COST_TITLES = {"mean_active": "mean active parameters", "worker_s": "worker-seconds (seconds × workers)"}
"""Costs that settings are drawn against, as their axes call them."""


def tradeoff(comparison: Comparison, cost: str) -> Chart | None:
    """The metric against a cost: completed settings, the front of the two, full fine-tuning and the constant prediction."""
    rows, metric = series.tradeoff(comparison, cost), text.metric_name(comparison.metric)
    if not rows:
        return None
    low, high, notes = _limits(rows, comparison)
    y = y_axis("value", f"validation {metric}, at budget", domain=[low, high], zero=False, nice=False)
    axis = alt.Axis(title=COST_TITLES[cost], format="~s", tickCount=7)
    x = alt.X("cost:Q", axis=axis, scale=alt.Scale(zero=False, padding=36))
    tooltip = setting_tooltips(
        metric,
        alt.Tooltip("value:Q", title=metric, format=".4f"),
        alt.Tooltip("cost:Q", title=COST_TITLES[cost], format=".4s"),
        alt.Tooltip("share:N", title="active, of all parameters"),
    )
    base = alt.Chart(data(rows)).encode(x=x, y=y)
    front = base.transform_filter(alt.datum.front).mark_line(style="front", interpolate="step-after")
    several = [row for row in rows if row["seeds"] > 1]
    spread = [alt.Chart(data(several)).mark_rule(style="spread").encode(x=x, y="low:Q", y2="high:Q")] if several else []
    points = base.mark_point(filled=True, size=90, opacity=1).encode(color=color(rows), shape=shape(rows), tooltip=tooltip)
    few = sum(row["front"] for row in rows) <= _NAMED
    special = (alt.datum.kind != series.OTHER) & (alt.datum.kind != series.FULL_KIND)  # its line says what it is
    names = base.transform_filter((alt.datum.front & (alt.datum.kind != series.FULL_KIND)) | special if few else special).mark_text(
        style="name", dy=-13
    )
    levels = [part for value, note, left in notes for part in level(value, note, left=left)]
    return finish(
        alt.layer(*levels, front, *spread, points, names.encode(y="high:Q", text="setting:N")),
        f"Scatter of validation {metric} against {COST_TITLES[cost]} of {text.count(len(rows), 'setting')}, with their Pareto front.",
        400,
    )


def _limits(rows: series.Rows, comparison: Comparison) -> tuple[float, float, list[tuple[float, str, bool]]]:
    """Vertical limits that resolve the points, and lines of reference; the constant prediction at the edge when it lies far below."""
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    margin = max(0.12 * (high - low), 0.01)
    low, high = low - margin, high + 1.6 * margin
    full = baseline(comparison, FULL)
    known = full["val_last_mean"] if full else None
    notes = [] if known is None else [(known, f"full fine-tuning: {text.score(known)}", True)]
    value = constant(comparison)
    if value is None:
        return low, high, notes
    if low - value > 2 * (high - low):
        return low, high, [*notes, (low, f"{constant_note(value)}, far below this axis ↓", False)]
    return min(low, value - margin), max(high, value + margin), [*notes, (value, constant_note(value), False)]


def zero_shot(comparison: Comparison) -> Chart | None:
    """The metric on data from elsewhere against that on the test split, with lines through full fine-tuning."""
    rows, metric = series.zero_shot(comparison), text.metric_name(comparison.metric)
    if not rows:
        return None
    x = alt.X("test:Q", axis=alt.Axis(title=f"test {metric} (in distribution)", tickCount=7), scale=alt.Scale(zero=False, padding=30))
    y = y_axis("elsewhere", f"zero-shot {metric}", zero=False, padding=24)
    numbers = [alt.Tooltip("test:Q", format=".4f"), alt.Tooltip("elsewhere:Q", title="zero-shot", format=".4f")]
    base = alt.Chart(data(rows)).encode(x=x, y=y)
    points = base.mark_point(filled=True, size=90, opacity=1)
    points = points.encode(color=color(rows), shape=shape(rows), tooltip=setting_tooltips(metric, *numbers))
    full = alt.Chart(data([row for row in rows if row["kind"] == series.FULL_KIND]))
    lines = [full.mark_rule(style="constant").encode(x=x), full.mark_rule(style="constant").encode(y=y)]
    names = base.transform_filter(alt.datum.kind != series.OTHER).mark_text(style="name", dy=-13).encode(text="setting:N")
    return finish(alt.layer(*lines, points, names), f"Scatter of zero-shot {metric} against test {metric}, one point per setting.")


def seeds(comparison: Comparison) -> Chart | None:
    """The mean of each setting with its interval, and the values of its seeds."""
    rows, values = series.seed_means(comparison)
    if not comparison.several_seeds or not rows:
        return None
    tooltip = ["setting:N", "seed:Q", alt.Tooltip("value:Q", format=".4g")]
    seen = alt.Chart(data(values)).mark_tick(style="seed", thickness=1.5, size=9)
    seen = seen.encode(x=alt.X("value:Q"), y=_settings_axis(rows), tooltip=tooltip)
    return _intervals(rows, alt.Scale(zero=False, padding=14), [seen], ["n:Q"], measure_name(comparison))


def differences(comparison: Comparison) -> Chart | None:
    """The mean difference of each setting to the baseline with its interval, and zero."""
    rows = series.seed_differences(comparison)
    if not comparison.several_seeds or not rows:
        return None
    zero = alt.Chart(data([{"value": 0}])).mark_rule(style="constant").encode(x="value:Q")
    said = ["pairs:Q", alt.Tooltip("p_holm:Q", title="p, Holm", format=".3g"), "verdict:N"]
    name = f"{measure_name(comparison)}: difference to {text.setting_name(comparison.options.baseline)}"
    return _intervals(rows, alt.Scale(padding=14), [zero], said, name)


def _settings_axis(rows: series.Rows) -> Any:
    return alt.Y("setting:N", sort=[row["setting"] for row in rows], axis=alt.Axis(title=None, grid=False))


def _intervals(rows: series.Rows, scale: Any, behind: list[Any], said: list[Any], what: str) -> Chart:
    """Means with their intervals, one setting per row, over what stands behind them."""
    y, known = _settings_axis(rows), [row for row in rows if row["low"] is not None]
    x = alt.X("mean:Q", axis=alt.Axis(title=what, tickCount=6), scale=scale)
    numbers = [alt.Tooltip(f"{part}:Q", format=".4g") for part in ("mean", "low", "high")]
    spans = [alt.Chart(data(known)).mark_rule(style="interval").encode(y=y, x=alt.X("low:Q"), x2="high:Q")] if known else []
    means = alt.Chart(data(rows)).mark_point(filled=True, size=80, opacity=1)
    tooltip = ["setting:N", *numbers, *said, alt.Tooltip("params:N", title="settings")]
    means = means.encode(x=x, y=y, color=color(rows), shape=shape(rows), tooltip=tooltip)
    return finish(alt.layer(*behind, *spans, means), f"Mean and 95 % interval per setting: {what}.", _rows_height(len(rows)))


def _rows_height(count: int) -> int:
    return count * (26 if count <= 40 else 18)


def _lines(rows: series.Rows, y: Any, interpolate: str, value: Any) -> Any:
    strong = alt.condition(alt.datum.kind == series.OTHER, alt.value(1.25), alt.value(2.25))
    dashes = alt.condition(alt.datum.kind == series.INCOMPLETE, alt.value([4, 3]), alt.value([1, 0]))
    tooltip = [alt.Tooltip("run:N"), alt.Tooltip("step:Q"), value, alt.Tooltip("params:N", title="settings")]
    base = alt.Chart(data(rows)).encode(x=steps_axis(), y=y, color=color(rows), detail="run:N", tooltip=tooltip)
    order = alt.Order("step:Q")
    crowded = len({row["run"] for row in rows}) > series.CROWD
    faint = {"opacity": alt.condition(alt.datum.kind == series.OTHER, alt.value(0.3), alt.value(1))} if crowded else {}
    return base.mark_line(interpolate=interpolate, strokeJoin="round").encode(strokeWidth=strong, strokeDash=dashes, order=order, **faint)


def validation(comparison: Comparison) -> Chart | None:
    """The metric over the steps of every run, and the constant prediction."""
    rows, metric = series.validation(comparison), text.metric_name(comparison.metric)
    if not rows:
        return None
    value = constant(comparison)
    levels = [] if value is None else level(value, constant_note(value))
    lines = _lines(rows, y_axis("value", f"validation {metric}"), "linear", alt.Tooltip("value:Q", title=metric, format=".4f"))
    if len({row["run"] for row in rows}) > series.CROWD:
        return finish(alt.layer(*levels, lines), f"Validation {metric} over optimizer steps, one line per run.")
    points = alt.Chart(data(rows)).mark_point(filled=True, size=22, opacity=1)
    points = points.encode(x=steps_axis(), y="value:Q", color=color(rows))
    return finish(alt.layer(*levels, lines, points), f"Validation {metric} over optimizer steps, one line per run.")


def active(comparison: Comparison) -> Chart | None:
    """The active fraction over the steps of every run."""
    rows = series.active_fraction(comparison)
    if not rows:
        return None
    axis_y = y_axis("fraction", "active fraction of all parameters", "%", domain=[0, 1])
    lines = _lines(rows, axis_y, "step-after", alt.Tooltip("fraction:Q", title="active", format=".1%"))
    return finish(lines, "Active fraction of all parameters over optimizer steps, one line per run.")


def step_time(comparison: Comparison) -> Chart | None:
    """Seconds per step over the steps, a line per run, or a band for a class of many runs."""
    rows, band = series.step_time(comparison)
    if not rows and not band:
        return None
    everything, y = [*rows, *band], y_axis("seconds", "seconds per step", zero=False)
    parts = []
    if band:
        base = alt.Chart(data(band)).encode(x=steps_axis(), color=color(everything))
        tooltip = ["kind:N", "step:Q", *(alt.Tooltip(f"{part}:Q", format=".3g") for part in ("low", "seconds", "high")), "runs:Q"]
        parts += [base.mark_area(opacity=0.25).encode(y=alt.Y("low:Q"), y2="high:Q"), base.mark_line().encode(y=y, tooltip=tooltip)]
    if rows:
        parts.append(_lines(rows, y, "linear", alt.Tooltip("seconds:Q", format=".3g")).encode(color=color(everything)))
    return finish(alt.layer(*parts), "Seconds per optimizer step, one line per run.")


def bars(rows: series.Rows, field: str, label: str, title: str) -> Chart | None:
    """A cost of every run as bars with their values."""
    if not any(row[field] is not None for row in rows):
        return None
    order = [row["run"] for row in rows]
    y = alt.Y("run:N", sort=order, axis=alt.Axis(title=None, grid=False))
    room = 1.2 * max(row[field] or 0 for row in rows)  # for the values behind the bars
    scale = alt.Scale(padding=0, domain=[0, room], nice=False) if room else alt.Scale(padding=0)
    x = alt.X(f"{field}:Q", axis=alt.Axis(title=title, labelExpr=NO_UNIT_AT_ZERO, tickCount=4), scale=scale)
    base = alt.Chart(data(rows)).encode(y=y, x=x)
    bar = base.mark_bar(height={"band": 0.62}, cornerRadiusEnd=2).encode(color=color(rows), tooltip=["run:N", f"{label}:N"])
    value = base.mark_text(style="name", align="left", dx=6).encode(text=f"{label}:N")
    return finish(alt.layer(bar, value), f"Bars of {title}, one per run.", _rows_height(len(rows)))
