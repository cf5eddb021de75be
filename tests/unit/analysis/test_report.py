import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fat_ray.analysis import theme
from fat_ray.analysis.compare import compare
from fat_ray.analysis.report import render_report, write_report
from fat_ray.errors import InputError, RecordError
from fat_ray.events import GroupInfo, Status
from fat_ray.records.place import place_of
from tests.support.studies import FakeRun, study_spec, write_study
from tests.unit.analysis.conftest import CHEAP, FULL, GOOD, MATCHED

pytestmark = pytest.mark.timeout(20)  # altair validates every chart against its schema

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*191}}"
CHARTS = {
    *("tradeoff", "tradeoff-time", "zero-shot", "validation", "active", "step-time", "schedule", "drift", "score", "parallel"),
    *("cost-time", "cost-flops"),
}
"""Those that one seed per setting and two completed trials can fill."""


class _Page(HTMLParser):
    """Collects elements with their attributes, and the text of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def _report(*directories: Path, run: str | None = None) -> str:
    return render_report(compare(list(directories)), run=run, library="")


def _hostile_study(directory: Path) -> Path:
    run = HOSTILE.replace("/", "_")  # a run's id is a folder's name
    groups = [GroupInfo(f"{HOSTILE}{i}", HOSTILE, HOSTILE, 100) for i in range(4)]
    runs = [
        FULL,
        replace(GOOD, run=run, params={"freeze.threshold": HOSTILE, "fisher.every": 2}),
        replace(CHEAP, status=Status.FAILED, steps=4, reason=HOSTILE),
    ]
    study = write_study(directory, runs, spec=study_spec(steps=20), groups=groups, text=f"name: x # {HOSTILE}\n")
    manifest = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**manifest, "git_commit": HOSTILE}))
    return study


def test_names_reasons_and_settings_of_a_study_cannot_become_markup(tmp_path: Path) -> None:
    html = _report(_hostile_study(tmp_path / "a"))
    page = _Page(html)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert "alert(1)</script>" not in html
    shown = "".join(page.text)
    assert shown.count(HOSTILE) >= 4  # reason, setting, file, commit: said, not lost
    assert "1337" not in shown  # the template language is not applied to values
    assert "<" not in page.scripts[0]
    assert any(bar["group"] == f"{HOSTILE}0" for bar in _values(page.data["charts"]["schedule"]))


def _values(node: Any) -> Iterator[dict[str, Any]]:
    """All inline data rows of a chart."""
    if isinstance(node, dict):
        if isinstance(node.get("values"), list) and node["values"] and isinstance(node["values"][0], dict):
            yield from node["values"]
        for inner in node.values():
            yield from _values(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _values(inner)


def test_the_page_refers_to_nothing_outside(study: Path) -> None:
    page = _Page(_report(study))
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value == "data:,", (tag, name, value)
    policy = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert str(policy[0]).startswith("default-src 'none';")
    assert not re.search(r"https?:", policy[0] or "")


def test_a_whole_study_fills_every_chart_and_place(study: Path) -> None:
    page = _Page(_report(study))
    places = {attributes["data-chart"] for _, attributes in page.elements if "data-chart" in attributes}
    assert places == CHARTS == set(page.data["charts"])
    assert all("config" not in chart for chart in page.data["charts"].values())


def test_the_words_state_the_result_and_its_limits(study: Path) -> None:
    shown = " ".join(" ".join(_Page(_report(study)).text).split())
    assert (
        "the best compromise between val/f1 and mean_active is trial 0: validation F1 0.580, where full fine-tuning reached 0.600." in shown
    )
    assert "A constant prediction scores 0.030." in shown
    assert "at random reached 0.500" in shown
    assert "One seed per setting" in shown
    assert "No claim about significance" in shown
    assert "1 run without an end yet" in shown
    assert "2 runs ended early" in shown
    assert "behind the others at step 12" in shown
    assert "worker 1 was killed" in shown
    assert "--set freeze.threshold=-0.5" in shown
    assert "7 runs: 4 completed" in shown


def test_several_seeds_are_summarised_with_their_deviation(tmp_path: Path) -> None:
    runs = [replace(run, run=f"{run.run[:-1]}{seed}", seed=seed, f1=run.f1 + 0.02 * seed) for run in (FULL, GOOD) for seed in (0, 1)]
    study = write_study(tmp_path / "a", runs, spec=study_spec(steps=20, seeds=[0, 1]))
    shown = " ".join(" ".join(_Page(_report(study)).text).split())
    assert "0.590 ± 0.014 (n = 2)" in shown
    assert "2 seeds per setting: means ± sample standard deviations." in shown
    assert "too few seeds to conclude. With n = 2 pairs an exact test cannot give p below 2/2^2 = 0.5" in shown
    assert "Over seeds: val F1, mean and difference to none by seed, each with its 95 % BCa interval" in shown
    assert re.search(
        r"Seed by seed it differs from full fine-tuning by \S+ in val F1 \(95 % interval \S+ to \S+, n = 2; exact paired", shown
    )
    assert "One seed" not in shown


def test_a_study_that_has_only_begun_is_reported(tmp_path: Path) -> None:
    begun = write_study(tmp_path / "a", [replace(GOOD, status=None, steps=3)], spec=study_spec(steps=20))
    page = _Page(_report(begun))
    assert "No trial has completed" in " ".join(page.text)
    assert set(page.data["charts"]) == {"validation", "active", "step-time", "cost-time", "cost-flops"}


def test_a_study_without_any_record_is_reported(tmp_path: Path) -> None:
    page = _Page(_report(write_study(tmp_path / "a", [])))
    assert page.data["charts"] == {}
    assert "0 runs" in " ".join(page.text)


def test_a_run_of_ones_choice_is_drawn_and_an_unknown_one_refused(study: Path) -> None:
    assert "When each group froze in t0001-s0" in _report(study, run="t0001-s0")
    with pytest.raises(InputError, match=r"run = 't9-s0': the study has no such run; it has .*t0001-s0"):
        _report(study, run="t9-s0")


def test_the_full_run_has_a_schedule_without_freezing_and_no_drift(study: Path) -> None:
    charts = _Page(_report(study, run="none-s0")).data["charts"]
    assert "drift" not in charts
    assert {row["state"] for row in _values(charts["schedule"]) if "state" in row} == {"active"}


def test_no_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no study"):
        _report(tmp_path)


def test_colours_are_named_by_roles_that_both_themes_have(study: Path) -> None:
    data = _Page(_report(study)).data
    roles: list[str] = []

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            roles.extend(node.get("range", []) if "domain" in node and isinstance(node.get("range"), list) else [])
            for inner in node.values():
                collect(inner)
        elif isinstance(node, list):
            for inner in node:
                collect(inner)

    collect(data["charts"])
    shapes = {"circle", "diamond", "triangle-up", "cross"}
    roles = [role for role in roles if isinstance(role, str)]  # a dash pattern is no colour
    for name in ("light", "dark"):
        assert set(roles) - shapes <= set(data["themes"][name]["colors"])
    assert {"best", "full", "active", "layer1"} <= set(roles)


def test_a_constant_prediction_far_below_does_not_flatten_the_points(tmp_path: Path) -> None:
    spec = study_spec(steps=20, freeze={"warmup_steps": 4})
    for constant, far in ((0.03, True), (0.38, False)):
        study = write_study(tmp_path / str(constant), [FULL, MATCHED, replace(GOOD, f1=0.55)], spec=spec, constant_f1=constant)
        notes = [row for row in _values(_Page(_report(study)).data["charts"]["tradeoff"]) if "constant" in row.get("note", "")]
        assert notes
        assert ("far below this axis" in notes[0]["note"]) == far
        assert (notes[0]["level"] == pytest.approx(constant)) == (not far)


@pytest.mark.parametrize(
    ("palette", "pages"), [(theme.LIGHT, ("#fbfaf8", "#ffffff")), (theme.DARK, ("#14171c", "#1a1e25"))], ids=["light", "dark"]
)
def test_contrast_is_accessible(palette: theme.Palette, pages: tuple[str, ...]) -> None:
    css = (Path(theme.__file__).parent / "templates" / "report.css").read_text()
    colours = asdict(palette)
    for page in pages:
        assert page in css
        for role in ("ink", "soft"):
            assert _contrast(colours[role], page) >= 4.5, role
        for role in set(colours) - {"ink", "soft", "rule", "frozen", "unknown"}:
            assert role.startswith("band") or _contrast(colours[role], page) >= 3.0, role
    assert _contrast(palette.active, palette.frozen) >= 3.0
    steps = [_contrast(colours[f"band{number}"], pages[0]) for number in range(1, 8)]
    assert steps == sorted(steps)


def _contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_a_single_run_without_search_is_reported(tmp_path: Path) -> None:
    single = FakeRun("run-s0", role="single", f1=0.6)
    study = write_study(tmp_path / "a", [single], spec=study_spec(steps=20, search={}))
    shown = " ".join(" ".join(_Page(_report(study)).text).split())
    assert "the best compromise between val/f1 and mean_active is the single run" in shown
    assert "searched nothing" in shown


@pytest.mark.parametrize("table", ["evals", "drift"])
def test_a_damaged_run_is_left_out_and_named(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    torn = study / "records" / table / "t0000-s0" / "part-00000.parquet"  # of the best compromise, whose drift is drawn
    torn.write_bytes(torn.read_bytes()[:100])
    monkeypatch.setattr("fat_ray.analysis.report.chart_library", lambda: "")
    path = write_report(study)
    shown = " ".join(" ".join(_Page(Path(path).read_text()).text).split())
    assert path == study / "report.html"
    assert f"Left out: t0000-s0. {torn} is not a whole Parquet file" in shown
    assert "is trial 1: validation F1 0.400, where full fine-tuning reached 0.600." in shown


def test_a_report_is_written_beside_its_study_on_another_file_system(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of("fsspec+memory://report/study")
    for path in study.rglob("*.*"):
        place.write(str(path.relative_to(study)), path.read_bytes())
    monkeypatch.setattr("fat_ray.analysis.report.chart_library", lambda: "")
    assert write_report("fsspec+memory://report/study") == "fsspec+memory://report/study/report.html"
    assert b"full fine-tuning reached 0.600" in place.read("report.html")


_BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""What linear RGB looks like (Machado, Oliveira and Fernandes, 2009)."""
_TOLD_APART = (
    ("best", "other", "full", "matched", "incomplete"),
    tuple(f"layer{number}" for number in range(1, 8)),
    ("active", "frozen", "unknown"),
    ("ramp1", "ramp2", "ramp3"),
)


@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("kind", _BLINDNESS)
def test_colours_stay_apart_for_the_colour_blind(palette: theme.Palette, kind: str) -> None:
    seen = {role: _lab(np.array(_BLINDNESS[kind]) @ _linear(colour)) for role, colour in asdict(palette).items()}
    near = [
        (one, other)
        for group in _TOLD_APART
        for one, other in combinations(group, 2)
        if np.linalg.norm(seen[one] - seen[other]) < 11  # CIE 1976; 2.3 is just noticeable
    ]
    assert near == []


def _linear(colour: str) -> Any:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _lab(rgb: Any) -> Any:
    """Linear RGB in CIELAB, with the white of sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
