"""The charts of a search: which settings matter, how trials run through all axes, and the metric over threshold and window."""

from typing import Any

import altair as alt

from fat_ray.analysis import search_space, series
from fat_ray.analysis.compare import Comparison
from fat_ray.analysis.insight import SearchInsight
from fat_ray.analysis.marks import LAYERS, Chart, data, finish, y_axis
from fat_ray.view import text

_RAMP = ["ramp1", "ramp2", "ramp3"]
_BANDS = [f"band{number + 1}" for number in range(search_space.BANDS)]
_VALUES = alt.Legend(gradientLength=180, gradientThickness=10, titleLimit=0)


def importance(insight: SearchInsight) -> Chart | None:
    """A bar per setting and objective."""
    rows = search_space.importance(insight)
    if not rows:
        return None
    objectives = [one.objective for one in insight.importances if one.shares]
    order = sorted({row["setting"] for row in rows}, key=lambda name: -sum(row["share"] for row in rows if row["setting"] == name))
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("setting:N", sort=order, axis=alt.Axis(title=None, grid=False)),
        yOffset=alt.YOffset("objective:N", sort=objectives),
        x=alt.X("share:Q", axis=alt.Axis(title="share of importance", format="%", tickCount=5), scale=alt.Scale(domain=[0, 1])),
    )
    color = alt.Color("objective:N", scale=alt.Scale(domain=objectives, range=list(LAYERS[: len(objectives)])), legend=alt.Legend())
    tooltip = ["setting:N", "objective:N", alt.Tooltip("share:Q", format=".1%")]
    bars = base.mark_bar(cornerRadiusEnd=2).encode(color=color, tooltip=tooltip)
    labels = base.mark_text(style="name", align="left", dx=5).encode(text=alt.Text("share:Q", format=".0%"))
    height = max(90, len(order) * (20 * len(objectives) + 12))
    return finish(alt.layer(bars, labels), "Importance of each searched setting for each objective.", height)


def parallel(comparison: Comparison) -> Chart | None:
    """A line per trial through all searched settings and objectives."""
    axes, rows, labels = search_space.parallel(comparison)
    if len({row["trial"] for row in rows}) < 2:
        return None
    names = alt.Axis(title=None, labelAngle=0, labelPadding=24, grid=False)
    x = alt.X("axis:N", sort=axes, scale=alt.Scale(type="point", padding=0.35), axis=names)
    y = alt.Y("height:Q", axis=None, scale=alt.Scale(domain=[0, 1]))
    goal = comparison.objectives[0]
    color = alt.Color("value:Q", scale=alt.Scale(range=_RAMP), legend=_VALUES).title(f"{goal.metric}, {goal.direction}")
    tooltip = ["trial:N", "axis:N", alt.Tooltip("shown:N", title="value"), alt.Tooltip("value:Q", title=goal.metric, format=".4f")]
    lines = alt.Chart(data(rows)).mark_line(strokeJoin="round")
    lines = lines.encode(
        x=x,
        y=y,
        color=color,
        detail="trial:N",
        tooltip=tooltip,
        strokeWidth=alt.condition(alt.datum.front, alt.value(3), alt.value(1)),
        opacity=alt.condition(alt.datum.front, alt.value(1), alt.value(0.55)),
    )
    rules = alt.Chart(data([{"axis": axis} for axis in axes])).mark_rule(style="event").encode(x=x)
    return finish(alt.layer(rules, lines, *_ends(labels, x, y)), "Each trial as a line through its settings and its objectives.")


def _ends(labels: series.Rows, x: Any, y: Any) -> list[Any]:
    """What the axes are labelled with: their ends beyond them, what lies between beside them."""
    places: list[tuple[Any, dict[str, Any]]] = [
        (alt.datum.height == 0, {"baseline": "top", "dy": 6}),
        (alt.datum.height == 1, {"baseline": "bottom", "dy": -6}),
        ((alt.datum.height > 0) & (alt.datum.height < 1), {"align": "left", "dx": 5}),
    ]
    base = alt.Chart(data(labels)).encode(x=x, y=y, text="label:N")
    return [base.transform_filter(chosen).mark_text(style="note", **how) for chosen, how in places]


def landscape(comparison: Comparison) -> Chart | None:
    """The metric over threshold and freeze window, as bands, with the trials."""
    if search_space.why_no_map(comparison):
        return None
    cells, points = search_space.landscape(comparison)
    metric = text.metric_name(comparison.metric)
    values = [point["value"] for point in points]
    scale = alt.Scale(type="quantize", domain=[min(values), max(values)], range=_BANDS, nice=False)
    legend = alt.Legend(title=f"validation {metric}", format=".3f", titleLimit=0)
    fill, stroke = (channel("value:Q", scale=scale, legend=legend) for channel in (alt.Fill, alt.Stroke))
    x = alt.X("x:Q", axis=alt.Axis(title="threshold λ (freeze.threshold)", grid=False), scale=alt.Scale(zero=False, nice=False, padding=12))
    y = y_axis("y", "freeze window n (freeze.every), steps", zero=False, nice=False, padding=12)
    base = alt.Chart(data(cells)).mark_rect(strokeWidth=0.8)  # strokes close the seams between cells
    base = base.encode(x=x, x2="x2:Q", y=y, y2="y2:Q", fill=fill, stroke=stroke)
    tooltip = ["trial:N", alt.Tooltip("value:Q", title=metric, format=".4f"), alt.Tooltip("params:N", title="settings")]
    trials = alt.Chart(data(points)).mark_point(style="trial", filled=True, size=55 if len(points) <= 100 else 16, opacity=1)
    return finish(
        alt.layer(base, trials.encode(x=alt.X("x:Q"), y=alt.Y("y:Q"), fill=fill, tooltip=tooltip)),
        f"Validation {metric} over threshold and freeze window.",
        360,
    )
