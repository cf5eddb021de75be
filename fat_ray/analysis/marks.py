"""What all charts share: their frame, axes, colours by role, and lines that say what a value is measured against."""

from typing import Any

import altair as alt

from fat_ray.analysis import series
from fat_ray.analysis.compare import Comparison
from fat_ray.view import text

Chart = dict[str, Any]
LAYERS = ("layer1", "layer2", "layer3", "layer4", "layer5", "layer6", "layer7")
"""Colours of classes without a meaning of their own."""
HEIGHT = 340
NO_UNIT_AT_ZERO = "datum.value ? format(datum.value, '~s') : '0'"

ROLES = {
    series.BEST: "best",
    series.OTHER: "other",
    series.FULL_KIND: "full",
    series.BASELINE: "matched",
    series.INCOMPLETE: "incomplete",
}
_SHAPES = {
    series.BEST: "circle",
    series.OTHER: "circle",
    series.FULL_KIND: "diamond",
    series.BASELINE: "triangle-up",
    series.INCOMPLETE: "cross",
}


def finish(chart: Any, description: str, height: int = HEIGHT) -> Chart:
    """The specification, as wide as its place, without a theme."""
    spec: Chart = chart.properties(description=description, width="container", height=height).to_dict()
    spec.pop("config", None)  # altair's own defaults; the page sets the theme
    return spec


def data(rows: series.Rows) -> Any:
    """Rows within the specification."""
    return alt.Data(values=rows)


def y_axis(field: str, title: str, number: str | None = None, **scale: Any) -> Any:
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


def steps_axis() -> Any:
    """The optimizer steps, from left to right."""
    return alt.X("step:Q", axis=alt.Axis(title="optimizer step", grid=False, tickMinStep=1, tickCount=10), scale=alt.Scale(nice=False))


def present(rows: series.Rows) -> list[str]:
    """The classes of runs among the rows, in the order of legends."""
    return [kind for kind in series.KINDS if any(row["kind"] == kind for row in rows)]


def color(rows: series.Rows) -> Any:
    """The colour of a run's class."""
    shown = present(rows)
    scale = alt.Scale(domain=shown, range=[ROLES[kind] for kind in shown])
    return alt.Color("kind:N", scale=scale, legend=alt.Legend())


def shape(rows: series.Rows) -> Any:
    """The shape of a run's class; its legend is that of the colour."""
    shown = present(rows)
    return alt.Shape("kind:N", scale=alt.Scale(domain=shown, range=[_SHAPES[kind] for kind in shown]), legend=alt.Legend())


def level(value: float, note: str, *, left: bool = False) -> list[Any]:
    """A horizontal line at a value, with what it is at one of its ends."""
    base = alt.Chart(data([{"level": value, "note": note}]))
    rule = base.mark_rule(style="constant").encode(y="level:Q")
    align: Any = {"align": "left", "dx": 4} if left else {"align": "right", "dx": -4}
    label = base.mark_text(style="note", baseline="bottom", dy=-4, **align)
    label = label.encode(y="level:Q", x=alt.value(0 if left else "width"), text="note:N")
    return [rule, label]


def constant(comparison: Comparison, split: str = "val") -> float | None:
    """What a constant prediction scores on a split, if the task says."""
    return next(iter(comparison.references[split].drop_nulls().to_list()), None)


def setting_tooltips(metric: str, *fields: Any) -> list[Any]:
    """What is said of a setting that is pointed at."""
    return [
        alt.Tooltip("setting:N"),
        *fields,
        alt.Tooltip("params:N", title="settings"),
        alt.Tooltip("seeds:Q", title=f"seeds behind {metric}"),
    ]


def events(rows: series.Rows) -> list[Any]:
    """Vertical lines at freeze events; none when nothing froze."""
    tooltip = [
        alt.Tooltip("step:Q", title="freeze event at step"),
        alt.Tooltip("frozen_groups:Q", title="groups frozen"),
        alt.Tooltip("thawed:Q", title="groups thawed"),
    ]
    return [alt.Chart(data(rows)).mark_rule(style="event").encode(x="step:Q", tooltip=tooltip)] if rows else []


def constant_note(value: float) -> str:
    """What the line of the constant prediction is called."""
    return f"constant prediction: {text.score(value)}"
