"""Figures as files: their size, their colours, and what is refused."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fat_ray.analysis import export, theme
from fat_ray.analysis.compare import compare
from fat_ray.analysis.figures import Subject, figures
from fat_ray.errors import InputError, OutputError

pytestmark = pytest.mark.timeout(60)  # vl-convert starts a JavaScript engine


def test_a_png_has_its_width_height_and_resolution(study: Path) -> None:
    form = export.Form(width=export.points("85mm", "--width"), height=export.points("2in", "--height"), dpi=150)
    ((made,), notes) = export.draw_figures(study, ["active"], "png", form)
    image = Image.open(io.BytesIO(made.content))
    assert notes == []
    assert image.size == pytest.approx((85 / 25.4 * 150, 300), abs=1)
    assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_pdf_and_an_svg_are_as_wide_as_asked(study: Path) -> None:
    form = export.Form(width=export.points("85mm", "--width"))
    (pdf,), _ = export.draw_figures(study, ["tradeoff"], "pdf", form)
    (svg,), _ = export.draw_figures(study, ["tradeoff"], "svg", form)
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf.content)
    assert box
    assert float(box[1]) == pytest.approx(85 * 72 / 25.4, abs=0.1)
    root = re.search(r'<svg[^>]*width="([\d.]+)pt" height="([\d.]+)pt"', svg.content.decode())
    assert root
    assert [float(root[1]), float(root[2])] == pytest.approx([float(box[1]), float(box[2])], abs=0.1)


def test_paper_is_light_titled_and_refers_to_no_address(study: Path) -> None:
    made = figures(Subject(compare([study]), "t0000-s0"))
    for one in (one for one in made.values() if one.chart):
        spec = export.paper(one, export.Form(width=240.0))
        roles = set(asdict(theme.LIGHT)) & {entry for found in _ranges(spec) for entry in found if isinstance(entry, str)}
        assert not roles, one.name
        assert " ".join(spec["title"]["text"]) == one.title
        assert "title" not in export.paper(one, export.Form(width=240.0, title=False))
        assert "http" not in json.dumps({**spec, "$schema": ""})


def _ranges(node: Any) -> Iterator[list[Any]]:
    if isinstance(node, dict):
        yield from ([node["range"]] if isinstance(node.get("range"), list) else [])
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _ranges(inner)


def test_a_figure_without_data_comes_with_its_reason(study: Path) -> None:
    (made,), _ = export.draw_figures(study, ["seeds"], "png", export.Form(width=240.0))
    assert (made.content, made.missing) == (b"", "Every setting was trained with one seed, so there is no interval.")


@pytest.mark.parametrize("given", ["85", "mm", "-3in", "3 miles", "1mm", "1e3mm", "9999cm", ""])
def test_what_is_no_length_is_refused(given: str) -> None:
    with pytest.raises(InputError, match=r"--width .*: must be a length from 15mm to 1400mm, such as 85mm, 8.5cm, 3.3in or 240pt"):
        export.points(given, "--width")


@pytest.mark.parametrize(("given", "points"), [("25.4mm", 72), ("2.54cm", 72), ("1 in", 72), ("72pt", 72)])
def test_lengths_have_units(given: str, points: float) -> None:
    assert export.points(given, "--width") == pytest.approx(points)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"--out: cannot write .*file/a\.png .*: (Not a directory|File exists)"):
        export.write_figure(tmp_path / "file" / "a.png", export.Drawn("a", b"x"))
