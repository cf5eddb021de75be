"""The command `plot`: its options, and the files that it writes."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fat_ray.errors import InputError


class ImageFormat(StrEnum):
    """What figures are written as."""

    PDF = "pdf"
    PNG = "png"
    SVG = "svg"


Out = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FILE|FOLDER", help="FILE.png, .svg or .pdf of one figure; without --figure a folder for all.", show_default=False
    ),
]
FigureName = Annotated[
    str | None, typer.Option("--figure", metavar="NAME", help="Which figure, such as tradeoff or schedule (docs/report.md); default: all.")
]
Width = Annotated[str, typer.Option("--width", metavar="LENGTH", help="In mm, cm, in or pt, axes and legend included.")]
Height = Annotated[str | None, typer.Option("--height", metavar="LENGTH", help="Likewise; default: what suits the figure.")]
Dpi = Annotated[float, typer.Option("--dpi", min=30, max=2400, help="Pixels per inch of a PNG.")]
Title = Annotated[bool, typer.Option("--title/--no-title", help="Whether figures carry their titles.")]
FormatOption = Annotated[
    ImageFormat | None, typer.Option("--format", help="What all figures are written as; default: pdf.", show_default=False)
]
Run = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="RUN", help="The run whose schedule and drift are drawn; default: the first seed of the best compromise."
    ),
]


@dataclass(frozen=True)
class Form:
    """Size and title as they are given."""

    width: str
    height: str | None
    dpi: float
    title: bool


def write_figures(
    place: str, out: Path, name: str | None, form: Form, format_: ImageFormat | None, run: str | None
) -> tuple[list[Path], list[str]]:
    """Writes one figure, or all that there is something to draw of.

    Returns:
        The files, and what a reader should know besides.

    Raises:
        InputError: A name, a format or a length is wrong, or there is nothing to draw.
        OutputError: A file cannot be written.
        RecordError: The study cannot be read.
    """
    from fat_ray.analysis import export
    from fat_ray.analysis.figures import FIGURES
    from fat_ray.api import search_insights

    if name is not None:
        export.check_name(name)
    wanted = export.Form(
        export.points(form.width, "--width"), export.points(form.height, "--height") if form.height else None, form.dpi, form.title
    )
    ending = _format(out, name, format_)
    drawn, notes = export.draw_figures(place, [name] if name else list(FIGURES), ending, wanted, run=run, insights=search_insights)
    if name and drawn[0].missing:
        raise InputError(f"--figure {name}: nothing to draw. {drawn[0].missing}")
    paths = []
    for one in drawn:
        path = out if name else out / f"{one.name}.{ending}"
        if one.missing:
            notes = [*notes, f"no {one.name}: {one.missing}"]
        else:
            export.write_figure(path, one)
            paths.append(path)
    return paths, notes


def _format(out: Path, name: str | None, format_: ImageFormat | None) -> str:
    """What the files are written as."""
    from fat_ray.analysis.export import FORMATS, format_of

    if name is None:
        if out.suffix.removeprefix(".") in FORMATS:
            raise InputError(f"--out {out}: without --figure all figures are written, into a folder; name one with --figure")
        return str(format_ or ImageFormat.PDF)
    ending = format_of(out)
    if format_ and ending != format_:
        raise InputError(f"--format {format_}: --out {out} says {ending}")
    return ending
