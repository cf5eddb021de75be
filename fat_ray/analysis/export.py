"""Figures as files for papers: PNG, SVG and PDF of a given width, in the light theme, by vl-convert."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from fat_ray.analysis import theme
from fat_ray.analysis.compare import Comparison, compare_studies
from fat_ray.analysis.figures import FIGURES, Figure, figure
from fat_ray.analysis.read import open_studies, tolerantly
from fat_ray.analysis.report import Insights, subject_of
from fat_ray.errors import InputError, OutputError, RecordError
from fat_ray.records.files import write_atomic
from fat_ray.spec.path import shorten

FORMATS = ("png", "svg", "pdf")
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version that the charts are written for."""

_POINTS = {"mm": 72 / 25.4, "cm": 72 / 2.54, "in": 72.0, "pt": 1.0}
_LEAST, _MOST = 40.0, 4000.0  # points, some 14 mm and 1.4 m
_FONT = "Roboto, Liberation Sans, Arial, sans-serif"
_PIXEL = 8 / 12
"""Points of a page's pixel: texts of 12 pixels have 8 points in print."""
_AROUND, _HIGHEST = 90, 652 / _PIXEL  # pixels: title, legend and axis; 230 mm, what a page has room for
_SHAPE = 0.85  # height over width where rows do not decide it
_ENTRY, _LETTER = 118, 7.2  # pixels: an entry of a legend, a letter of a title


@dataclass(frozen=True)
class Form:
    """How a figure is drawn.

    Attributes:
        width: In points, axes and legend included.
        height: In points; None: what suits the figure.
        dpi: Pixels per inch of a PNG.
        title: Whether it carries its title.
    """

    width: float
    height: float | None = None
    dpi: float = 300
    title: bool = True


@dataclass(frozen=True)
class Drawn:
    """What came of a figure: its bytes in the format that was asked for, or why there are none."""

    name: str
    content: bytes
    missing: str = ""


def points(given: str, option: str) -> float:
    """A length such as ``85mm``, ``8.5cm``, ``3.3in`` or ``240pt`` in points.

    Raises:
        InputError: It is none, or nothing that can be drawn.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(mm|cm|in|pt)", given.strip())
    found = float(match[1]) * _POINTS[match[2]] if match else 0.0
    if not _LEAST <= found <= _MOST:
        raise InputError(f"{option} {shorten(given)}: must be a length from 15mm to 1400mm, such as 85mm, 8.5cm, 3.3in or 240pt")
    return found


def format_of(path: Path) -> str:
    """The format that the ending of a file's name asks for.

    Raises:
        InputError: It is none of `FORMATS`.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise InputError(f"--out {shorten(str(path))}: must end in .png, .svg or .pdf")
    return ending


def check_name(name: str) -> None:
    """Makes sure that there is a figure of this name.

    Raises:
        InputError: There is none.
    """
    if name not in FIGURES:
        raise InputError(f"--figure {shorten(name)}: there is no such figure; there are {', '.join(FIGURES)}")


def draw_figures(
    place: str | Path, names: Sequence[str], format_: str, form: Form, *, run: str | None = None, insights: Insights | None = None
) -> tuple[list[Drawn], list[str]]:
    """Figures of a study.

    Args:
        place: The study or its URI.
        names: Which ones, of `FIGURES`.
        format_: One of `FORMATS`.
        form: How they are drawn.
        run: As for `analysis.report.write_report`.
        insights: As for `analysis.report.write_report`.

    Returns:
        What came of each, and what of the study could not be read.

    Raises:
        RecordError: There is no study, or it cannot be read at all.
        InputError: There is no such run.
    """

    def draw(comparison: Comparison) -> tuple[list[Drawn], list[str]]:
        room = (form.height / _PIXEL if form.height else _HIGHEST) - _AROUND
        subject = replace(subject_of(comparison, run, insights), room=max(room, _LEAST))
        return [_drawn(figure(name, subject), format_, form) for name in names], comparison.damage

    return tolerantly(open_studies([place]), lambda studies: draw(compare_studies(studies)))


def write_figure(path: Path, drawn: Drawn) -> None:
    """Writes a figure, in place of an older one, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        write_atomic(path, drawn.content)
    except (OSError, RecordError) as error:
        raise OutputError(f"--out: {error}") from error


def _drawn(made: Figure, format_: str, form: Form) -> Drawn:
    if made.chart is None:
        return Drawn(made.name, b"", made.missing)
    spec, nowhere = paper(made, form), list[str]()  # whatever a specification says, nothing is fetched
    if format_ == "png":
        png = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=_PIXEL, ppi=form.dpi, allowed_base_urls=nowhere)
        return Drawn(made.name, png)
    drawing = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, allowed_base_urls=nowhere)
    if format_ == "pdf":  # a number without a unit is a point there
        return Drawn(made.name, vl_convert.svg_to_pdf(_sized(drawing, spec, "")))
    return Drawn(made.name, _sized(drawing, spec, "pt").encode())


def _sized(drawing: str, spec: dict[str, Any], unit: str) -> str:
    """An SVG with the size in points at its root; what is drawn in it keeps its own units."""
    size = f'width="{spec["width"] * _PIXEL:.2f}{unit}" height="{spec["height"] * _PIXEL:.2f}{unit}"'
    return re.sub(r'width="[\d.]+" height="[\d.]+"', size, drawing, count=1)


def paper(made: Figure, form: Form) -> dict[str, Any]:
    """A figure's specification with size in pixels of the page, title and the light theme."""
    assert made.chart is not None
    width = form.width / _PIXEL
    look = theme.theme(theme.LIGHT, font=_FONT)
    config = look["config"]
    config["background"] = "white"
    config["axis"]["labelLimit"] = 0.42 * width
    config["legend"]["columns"] = max(1, int(width // _ENTRY))
    lines = textwrap.wrap(made.title, max(12, int(width / _LETTER)))
    return {
        **theme.coloured(made.chart, look["colors"]),
        "config": config,
        "width": width,
        "height": form.height / _PIXEL if form.height else _height(made, width),
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": 4, "top": 4, "right": 12, "bottom": 4},
        **({"title": {"text": lines}} if form.title else {}),
    }


def _height(made: Figure, width: float) -> float:
    assert made.chart is not None
    return float(min(made.chart["height"] + _AROUND, _HIGHEST)) if made.by_rows else _SHAPE * width
