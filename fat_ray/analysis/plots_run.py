"""The charts of one run: its freeze schedule, its drift, and the scores that its policy compared with a threshold."""

import altair as alt

from fat_ray.analysis import series
from fat_ray.analysis.compare import Comparison
from fat_ray.analysis.marks import LAYERS, Chart, data, events, finish, steps_axis, y_axis

STATES = {series.ACTIVE: "active", series.FROZEN: "frozen", series.UNKNOWN: "unknown"}
_TAU = "threshold"


def schedule(plan: series.Schedule) -> Chart:
    """When each group froze: groups in network order from top to bottom, steps from left to right."""
    names = alt.Axis(
        title="layer, from the input down",
        titleAngle=0,
        titleAlign="right",
        titleAnchor="end",
        titleBaseline="bottom",
        titleX=-6,
        titleY=-12,
        values=list(plan.labels),
        labelExpr="layers[datum.value]",
        style="dense",
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
    known = [state for state in STATES if any(bar["state"] == state for bar in plan.bars)]
    state = alt.Color("state:N", scale=alt.Scale(domain=known, range=[STATES[one] for one in known]), legend=alt.Legend())
    spans = alt.Chart(data(plan.bars)).mark_rect(strokeWidth=0).encode(x=x, x2="to:Q", y=y, y2="y1:Q", color=state, tooltip=tooltip)
    chart = alt.layer(spans, *events(plan.events)).add_params(
        alt.param(name="layers", value={str(at): name for at, name in plan.labels.items()})
    )
    return finish(chart, f"Freeze schedule of run {plan.run}: which groups were active at each step.", plan.height)


def drift(comparison: Comparison, run: str) -> Chart | None:
    """Mean smoothed drift per layer kind over the drift updates, with the freeze events."""
    rows = series.drift(comparison, run)
    if not rows:
        return None
    found = events(series.events(comparison, run))
    return finish(
        alt.layer(*found, _kinds(rows, "mean smoothed drift (distance)")),
        f"Mean smoothed drift per layer kind over the drift updates of run {run}, with its freeze events.",
    )


def score(comparison: Comparison, run: str) -> Chart | None:
    """Mean score per layer kind, with the threshold of each decision and the freeze events."""
    rows, taus = series.drift(comparison, run, column="score"), series.thresholds(comparison, run)
    if not rows:
        return None
    tooltip = [alt.Tooltip("step:Q"), alt.Tooltip("threshold:Q", format=".4f"), "frozen_groups:Q", "limited_by:N"]
    base = alt.Chart(data([{**row, "what": _TAU} for row in taus])).encode(x=steps_axis(), y=alt.Y("threshold:Q"), tooltip=tooltip)
    dash = alt.StrokeDash("what:N", scale=alt.Scale(domain=[_TAU], range=[[5, 3]]), legend=alt.Legend())
    lines = [
        base.mark_line(style="tau", interpolate="step-before").encode(strokeDash=dash),
        base.mark_point(style="tau", filled=True, shape="diamond", size=40, opacity=1),
    ]
    found = events(series.events(comparison, run))
    chart = alt.layer(*found, _kinds(rows, "mean score (distance)"), *(lines if taus else []))
    return finish(
        chart.resolve_scale(strokeDash="independent"),
        f"Mean score per layer kind over the drift updates of run {run}, with the thresholds of its decisions.",
    )


def _kinds(rows: series.Rows, title: str) -> alt.Chart:
    """A line per layer kind."""
    present = sorted({row["kind"] for row in rows})
    color = alt.Color("kind:N", scale=alt.Scale(domain=present, range=list(LAYERS[: len(present)])), legend=alt.Legend())
    tooltip = [
        alt.Tooltip("kind:N"),
        alt.Tooltip("update:Q"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("drift:Q", title=title, format=".4f"),
        alt.Tooltip("groups:Q", title="measured groups"),
    ]
    lines = alt.Chart(data(rows)).mark_line(point={"size": 26}, strokeWidth=2)
    return lines.encode(x=steps_axis(), y=y_axis("drift", title), color=color, tooltip=tooltip)
