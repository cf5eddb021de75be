"""Colours and type of the report's charts, for a light and a dark page."""

from dataclasses import asdict, dataclass
from typing import Any

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Palette:
    """Colours by role. Text has a contrast of 4.5 at least against the page, lines and areas of 3; bands go from faint to strong."""

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
    unknown: str
    layer1: str
    layer2: str
    layer3: str
    layer4: str
    layer5: str
    layer6: str
    layer7: str
    ramp1: str
    ramp2: str
    ramp3: str
    band1: str
    band2: str
    band3: str
    band4: str
    band5: str
    band6: str
    band7: str


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
    unknown="#b4bdc9",
    layer1="#1f5fbf",
    layer2="#b8620a",
    layer3="#2f7d5b",
    layer4="#8a4fa3",
    layer5="#7d1128",
    layer6="#5b6472",
    layer7="#848b96",
    ramp1="#b8620a",
    ramp2="#808691",
    ramp3="#1f5fbf",
    band1="#e6edf6",
    band2="#cfdcee",
    band3="#b2cae6",
    band4="#84aad7",
    band5="#5585c2",
    band6="#2f60a0",
    band7="#153a6b",
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
    unknown="#474f5b",
    layer1="#6ea8ff",
    layer2="#e8a04c",
    layer3="#6cc39a",
    layer4="#b06fd0",
    layer5="#ffc4cc",
    layer6="#a3a9b3",
    layer7="#7b828d",
    ramp1="#e8a04c",
    ramp2="#8b929d",
    ramp3="#6ea8ff",
    band1="#212c3d",
    band2="#223a5c",
    band3="#2a5288",
    band4="#3a6fb5",
    band5="#5b91d8",
    band6="#8fb8ee",
    band7="#cfe2ff",
)


def theme(palette: Palette, *, size: float = 12, font: str = _FONT) -> dict[str, Any]:
    """What is needed to show the charts in one theme: `colors` by role and the Vega-Lite `config`.

    Args:
        palette: The colours.
        size: Font size in pixels.
        font: Fonts, the first one that is there counts.
    """
    text = {"labelColor": palette.soft, "labelFontSize": size, "titleColor": palette.soft, "titleFontSize": size}
    axis = {
        "domain": False,
        "ticks": False,
        "gridColor": palette.rule,
        "labelFlush": False,
        "labelPadding": 8,
        "labelLimit": 280,
        "titleFontWeight": "normal",
        "titlePadding": 12,
        **text,
    }
    legend = {
        **text,
        "labelColor": palette.ink,
        "labelLimit": 0,
        "symbolSize": 90,
        "orient": "top",
        "title": None,
        "titleFontWeight": "normal",
        "offset": 36,
    }
    title = {"color": palette.ink, "fontSize": size + 1, "anchor": "start", "frame": "bounds", "offset": 12}
    view = {"stroke": None}
    return {
        "colors": asdict(palette),
        "config": {
            "background": None,
            "font": font,
            "view": view,
            "axis": axis,
            "legend": legend,
            "title": title,
            "style": _styles(palette, size, font),
        },
    }


def _styles(palette: Palette, size: float, font: str) -> dict[str, Any]:
    """Marks whose colour is not that of a scale."""
    return {
        "front": {"color": palette.best, "strokeWidth": 1.5, "opacity": 0.55},
        "constant": {"color": palette.soft, "strokeDash": [5, 4], "strokeWidth": 1},
        "event": {"color": palette.soft, "strokeWidth": 1, "opacity": 0.45},
        "spread": {"color": palette.soft, "strokeWidth": 1},
        "interval": {"color": palette.ink, "strokeWidth": 2},
        "seed": {"color": palette.soft, "opacity": 0.8},
        "tau": {"color": palette.ink, "strokeWidth": 1.5},
        "trial": {"stroke": palette.ink, "strokeWidth": 1},
        "dense": {"labelFontSize": 0.85 * size},
        "note": {"color": palette.soft, "fontSize": size, "font": font},
        "name": {"color": palette.ink, "fontSize": size, "font": font},
    }


def coloured(node: Any, colors: dict[str, str]) -> Any:
    """A chart with colours in place of roles, as the page's script does it: only entries of a `range` are roles."""
    if isinstance(node, list):
        return [coloured(inner, colors) for inner in node]
    if not isinstance(node, dict):
        return node
    return {
        key: [colors.get(role, role) if isinstance(role, str) else role for role in value]
        if key == "range" and isinstance(value, list)
        else coloured(value, colors)
        for key, value in node.items()
    }
