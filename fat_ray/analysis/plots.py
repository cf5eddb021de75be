"""The report's charts as Vega-Lite specifications, independent of light and dark.

Colours are named by role (theme.py), as `range` entries of scales or as mark styles; the page puts in those of the theme that is shown.
"""

from typing import Any

import altair as alt

from fat_ray.analysis import series
from fat_ray.analysis.compare import Comparison
from fat_ray.view import text

Chart = dict[str, Any]
_NO_UNIT_AT_ZERO = "datum.value ? format(datum.value, '~s') : '0'"
_LAYERS = ("layer1", "layer2", "layer3", "layer4", "layer5", "layer6", "layer7")


ROLES = {
    series.BEST: "best",
    series.OTHER: "other",
    series.FULL_KIND: "full",
    series.MATCHED: "matched",
    series.INCOMPLETE: "incomplete",
}


def charts(comparison: Comparison, run: str | None) -> dict[str, Chart]:
    """All charts that the records can fill, by the id of their place in the page.

    Args:
        comparison: What is reported.
        run: The run whose schedule and drift are drawn; None draws neither.
    """
    made = {
        "tradeoff": tradeoff(comparison),
        "validation": validation(comparison),
        "active": active(comparison),
        "cost-time": bars(series.costs(comparison), "train_s", "train_text", "training time, seconds"),
        "cost-flops": bars(series.costs(comparison), "flops", "flops_text", "training FLOPs"),
        "schedule": schedule(comparison, run) if run else None,
        "drift": drift(comparison, run) if run else None,
    }
    return {name: chart for name, chart in made.items() if chart is not None}


def _finish(chart: Any, description: str, height: int = 340) -> Chart:
    spec: Chart = chart.properties(description=description, width="container", height=height).to_dict()
    spec.pop("config", None)  # altair's own defaults; the page sets the theme
    return spec


def _rows(rows: series.Rows) -> Any:
    return alt.Data(values=rows)


def _y(field: str, title: str, number: str | None = None, **scale: Any) -> Any:
    """A vertical axis whose title stands above it, where it can be read without turning the head."""
    axis = alt.Axis(
        title=title,
        titleAngle=0,
        titleAlign="left",
        titleAnchor="end",
        titleBaseline="bottom",
        titleX=-34,
        titleY=-14,
        tickCount=6,
        format=number or alt.Undefined,
    )
    return alt.Y(f"{field}:Q", axis=axis, scale=alt.Scale(**scale))


def _steps() -> Any:
    return alt.X("step:Q", axis=alt.Axis(title="optimizer step", grid=False, tickMinStep=1, tickCount=10), scale=alt.Scale(nice=False))


def _color(rows: series.Rows) -> Any:
    """The colour of a run's class; the page itself shows the legend, once for several charts."""
    present = [kind for kind in series.KINDS if any(row["kind"] == kind for row in rows)]
    return alt.Color("kind:N", scale=alt.Scale(domain=present, range=[ROLES[kind] for kind in present]), legend=None)


def tradeoff(comparison: Comparison) -> Chart | None:
    """The metric against mean active parameters: completed settings, the front of the two, and the constant prediction."""
    rows, metric = series.tradeoff(comparison), text.metric_name(comparison.metric)
    if not rows:
        return None
    low, high, note = _domain(rows, comparison)
    y = _y("value", f"validation {metric}, at budget", domain=[low, high], zero=False, nice=False)
    x = alt.X(
        "active:Q", axis=alt.Axis(title="mean active parameters N̄", format="~s", tickCount=7), scale=alt.Scale(zero=False, padding=36)
    )
    tooltip = [
        alt.Tooltip("setting:N"),
        alt.Tooltip("value:Q", title=metric, format=".4f"),
        alt.Tooltip("active:Q", title="N̄", format=".4s"),
        alt.Tooltip("share:N", title="N̄ of all"),
        alt.Tooltip("params:N", title="settings"),
        alt.Tooltip("seeds:Q", title="seeds"),
    ]
    base = alt.Chart(_rows(rows)).encode(x=x, y=y)
    front = base.transform_filter(alt.datum.front).mark_line(style="front", interpolate="step-after")
    several = [row for row in rows if row["seeds"] > 1]
    spread = [alt.Chart(_rows(several)).mark_rule(style="spread").encode(x=x, y="low:Q", y2="high:Q")] if several else []
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        color=_color(rows), shape=alt.Shape("kind:N", legend=None, scale=_shapes(rows)), tooltip=tooltip
    )
    named = base.transform_filter(alt.datum.front | (alt.datum.kind != series.OTHER))
    names = named.mark_text(style="name", dy=-13).encode(y="high:Q", text="setting:N")
    return _finish(
        alt.layer(*_constant(note), front, *spread, points, names),
        f"Scatter of validation {metric} against mean active parameters of {text.count(len(rows), 'setting')}, with their Pareto front.",
        400,
    )


def _shapes(rows: series.Rows) -> Any:
    shapes = {series.BEST: "circle", series.OTHER: "circle", series.FULL_KIND: "diamond", series.MATCHED: "triangle-up"}
    present = [kind for kind in series.KINDS if any(row["kind"] == kind for row in rows)]
    return alt.Scale(domain=present, range=[shapes[kind] for kind in present])


def _domain(rows: series.Rows, comparison: Comparison) -> tuple[float, float, series.Rows]:
    """Vertical limits that resolve the points, and where the constant prediction is drawn: at its value, or at the edge when far below."""
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    margin = max(0.12 * (high - low), 0.01)
    low, high = low - margin, high + 1.6 * margin
    constant = comparison.references["val"].drop_nulls().to_list()
    if not constant:
        return low, high, []
    value = constant[0]
    if low - value > 2 * (high - low):
        return low, high, [{"value": low, "note": f"constant prediction: {text.score(value)}, far below this axis ↓"}]
    return min(low, value - margin), max(high, value + margin), [{"value": value, "note": f"constant prediction: {text.score(value)}"}]


def _constant(note: series.Rows) -> list[Any]:
    if not note:
        return []
    base = alt.Chart(_rows(note))
    rule = base.mark_rule(style="constant").encode(y="value:Q")
    label = base.mark_text(style="note", align="right", baseline="bottom", dx=-4, dy=-4).encode(
        y="value:Q", x=alt.value("width"), text="note:N"
    )
    return [rule, label]


def _lines(rows: series.Rows, y: Any, interpolate: str, value: Any) -> Any:
    strong = alt.condition(alt.datum.kind == series.OTHER, alt.value(1.25), alt.value(2.25))
    dashes = alt.condition(alt.datum.kind == series.INCOMPLETE, alt.value([4, 3]), alt.value([1, 0]))
    tooltip = [alt.Tooltip("run:N"), alt.Tooltip("step:Q"), value, alt.Tooltip("params:N", title="settings")]
    base = alt.Chart(_rows(rows)).encode(x=_steps(), y=y, color=_color(rows), detail="run:N", tooltip=tooltip)
    order = alt.Order("step:Q")
    return base.mark_line(interpolate=interpolate, strokeJoin="round").encode(strokeWidth=strong, strokeDash=dashes, order=order)


def validation(comparison: Comparison) -> Chart | None:
    """The metric over the steps of every run, and the constant prediction."""
    rows, metric = series.validation(comparison), text.metric_name(comparison.metric)
    if not rows:
        return None
    constant = comparison.references["val"].drop_nulls().to_list()[:1]
    note = [{"value": value, "note": f"constant prediction: {text.score(value)}"} for value in constant]
    lines = _lines(rows, _y("value", f"validation {metric}"), "linear", alt.Tooltip("value:Q", title=metric, format=".4f"))
    points = alt.Chart(_rows(rows)).mark_point(filled=True, size=22, opacity=1).encode(x=_steps(), y="value:Q", color=_color(rows))
    return _finish(alt.layer(*_constant(note), lines, points), f"Validation {metric} over optimizer steps, one line per run.")


def active(comparison: Comparison) -> Chart | None:
    """The active fraction over the steps of every run."""
    rows = series.active_fraction(comparison)
    if not rows:
        return None
    axis_y = _y("fraction", "active fraction of all parameters", "%", domain=[0, 1])
    lines = _lines(rows, axis_y, "step-after", alt.Tooltip("fraction:Q", title="active", format=".1%"))
    return _finish(lines, "Active fraction of all parameters over optimizer steps, one line per run.")


def bars(rows: series.Rows, field: str, label: str, title: str) -> Chart | None:
    """A cost of every run as bars with their values."""
    if not any(row[field] is not None for row in rows):
        return None
    order = [row["run"] for row in rows]
    y = alt.Y("run:N", sort=order, axis=alt.Axis(title=None, grid=False, labelLimit=200, labelFontSize=12))
    x = alt.X(f"{field}:Q", axis=alt.Axis(title=title, labelExpr=_NO_UNIT_AT_ZERO, tickCount=4), scale=alt.Scale(padding=0))
    base = alt.Chart(_rows(rows)).encode(y=y, x=x)
    bar = base.mark_bar(height={"band": 0.62}, cornerRadiusEnd=2).encode(color=_color(rows), tooltip=["run:N", f"{label}:N"])
    value = base.mark_text(style="name", align="left", dx=6).encode(text=f"{label}:N")
    return _finish(alt.layer(bar, value), f"Bars of {title}, one per run.", len(rows) * (26 if len(rows) <= 40 else 18))


def schedule(comparison: Comparison, run: str) -> Chart | None:
    """When each group froze: groups in network order from top to bottom, steps from left to right."""
    plan = series.schedule(comparison, run)
    if plan is None:
        return None
    names = alt.Axis(
        title=None,
        values=list(plan.labels),
        labelExpr="layers[datum.value]",
        labelLimit=280,
        labelFontSize=10.5,
        labelPadding=6,
        grid=False,
    )
    y = alt.Y("y0:Q", axis=names, scale=alt.Scale(domain=[0, plan.height], reverse=True, nice=False))
    top = alt.Axis(title="optimizer step", orient="top", grid=False, tickMinStep=1)
    x = alt.X("from:Q", axis=top, scale=alt.Scale(domain=[0, plan.steps], nice=False))
    tooltip = [
        alt.Tooltip("group:N"),
        alt.Tooltip("layer_kind:N", title="kind"),
        alt.Tooltip("elements:Q", title="parameters", format=","),
        alt.Tooltip("fate:N", title="fate"),
    ]
    state = alt.Color("state:N", scale=alt.Scale(domain=["active", "frozen"], range=["active", "frozen"]), legend=None)
    spans = alt.Chart(_rows(plan.bars)).mark_rect(strokeWidth=0).encode(x=x, x2="to:Q", y=y, y2="y1:Q", color=state, tooltip=tooltip)
    chart = alt.layer(spans, *_events(plan.events)).add_params(
        alt.param(name="layers", value={str(at): name for at, name in plan.labels.items()})
    )
    return _finish(chart, f"Freeze schedule of run {run}: which groups were active at each step.", plan.height)


def _events(events: series.Rows) -> list[Any]:
    """Vertical lines at freeze events; none when nothing froze."""
    tooltip = [alt.Tooltip("step:Q", title="freeze event at step"), alt.Tooltip("frozen_groups:Q", title="groups frozen")]
    return [alt.Chart(_rows(events)).mark_rule(style="event").encode(x="step:Q", tooltip=tooltip)] if events else []


def drift(comparison: Comparison, run: str) -> Chart | None:
    """Mean smoothed drift per layer kind over the drift updates, with the freeze events."""
    rows = series.drift(comparison, run)
    if not rows:
        return None
    present = sorted({row["kind"] for row in rows})
    color = alt.Color("kind:N", scale=alt.Scale(domain=present, range=list(_LAYERS[: len(present)])))
    tooltip = [
        alt.Tooltip("kind:N"),
        alt.Tooltip("update:Q"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("drift:Q", format=".4f"),
        alt.Tooltip("groups:Q", title="measured groups"),
    ]
    axis_y = _y("drift", "mean smoothed drift")
    lines = alt.Chart(_rows(rows)).mark_line(point={"size": 26}, strokeWidth=2).encode(x=_steps(), y=axis_y, color=color, tooltip=tooltip)
    return _finish(
        alt.layer(*_events(series.events(comparison, run)), lines),
        f"Mean smoothed drift per layer kind over the drift updates of run {run}, with its freeze events.",
    )
