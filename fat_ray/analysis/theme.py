"""Colours and type of the report's charts, for a light and a dark page."""

from dataclasses import asdict, dataclass
from typing import Any

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Palette:
    """Colours by role. Text has a contrast of 4.5 at least against the page, lines and areas of 3."""

    ink: str
    soft: str
    rule: str
    best: str
    other: str
    full: str
    matched: str
    incomplete: str
    active: str
    frozen: str
    layer1: str
    layer2: str
    layer3: str
    layer4: str
    layer5: str
    layer6: str
    layer7: str


LIGHT = Palette(
    ink="#1d2430",
    soft="#5b6472",
    rule="#e3e5e8",
    best="#1f5fbf",
    other="#6d8dc0",
    full="#1d2430",
    matched="#b8620a",
    incomplete="#848b96",
    active="#3c78c8",
    frozen="#dfe3e8",
    layer1="#1f5fbf",
    layer2="#b8620a",
    layer3="#2f7d5b",
    layer4="#8a4fa3",
    layer5="#a83a4b",
    layer6="#5b6472",
    layer7="#848b96",
)
DARK = Palette(
    ink="#e8e6e1",
    soft="#a3a9b3",
    rule="#2e333b",
    best="#6ea8ff",
    other="#56739f",
    full="#f1efe9",
    matched="#e8a04c",
    incomplete="#7b828d",
    active="#4f8ae0",
    frozen="#2a3038",
    layer1="#6ea8ff",
    layer2="#e8a04c",
    layer3="#6cc39a",
    layer4="#c493dc",
    layer5="#ee8391",
    layer6="#a3a9b3",
    layer7="#7b828d",
)


def theme(palette: Palette) -> dict[str, Any]:
    """What the page needs to show the charts in one theme: `colors` by role and the Vega-Lite `config`."""
    axis = {
        "domain": False,
        "ticks": False,
        "gridColor": palette.rule,
        "labelColor": palette.soft,
        "labelFontSize": 12,
        "labelFlush": False,
        "labelPadding": 8,
        "titleColor": palette.soft,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 12,
    }
    styles = {
        "front": {"color": palette.best, "strokeWidth": 1.5, "opacity": 0.55},
        "constant": {"color": palette.soft, "strokeDash": [5, 4], "strokeWidth": 1},
        "event": {"color": palette.soft, "strokeWidth": 1, "opacity": 0.45},
        "spread": {"color": palette.soft, "strokeWidth": 1},
        "note": {"color": palette.soft, "fontSize": 12, "font": _FONT},
        "name": {"color": palette.ink, "fontSize": 12, "font": _FONT},
    }
    legend = {
        "labelColor": palette.ink,
        "labelFontSize": 12,
        "labelLimit": 0,
        "symbolSize": 90,
        "orient": "top",
        "title": None,
        "offset": 36,
    }
    config = {"background": None, "font": _FONT, "view": {"stroke": None}, "axis": axis, "legend": legend, "style": styles}
    return {"colors": asdict(palette), "config": config}
