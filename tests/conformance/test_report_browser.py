"""The report in a real browser: every chart is drawn, nothing is logged, nothing is fetched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fat_ray.analysis.report import write_report
from tests.support.studies import FakeRun, lite0_groups, study_spec, write_study

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
]

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser, google-chrome or chrome on the PATH"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [
        FakeRun("none-s0", role="baseline", label="none", frozen=0),
        FakeRun("random_matched-s0", role="baseline", label="random_matched", f1=0.55),
        FakeRun("t0000-s0", trial=0, f1=0.59, params={"freeze.threshold": -0.5, "freeze.every": 8}),
        FakeRun("t0001-s0", trial=1, f1=0.57, frozen=0.8),
    ]
    directory = tmp_path_factory.mktemp("report") / "</b>&amp; study"
    return write_report(write_study(directory, runs, spec=study_spec(steps=40), groups=lite0_groups()))


def _dump(page: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what the browser logged."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, done.stderr


@pytest.mark.parametrize(("theme", "flags"), [("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))])
def test_every_chart_is_drawn_without_errors(page: Path, tmp_path: Path, theme: str, flags: tuple[str, ...]) -> None:
    dom, log = _dump(page, tmp_path / "profile", *flags)
    assert f'data-charts="{theme}"' in dom
    places = re.split(r'<div class="chart[^"]*" id="chart-', dom)[1:]
    assert len(places) == 7
    for place in places:
        svg = place.split("</svg>")[0]
        assert "<svg" in svg, place[:80]
        assert svg.count("<path") > 3, place[:80]
    assert "encoder._blocks.3._project_conv" in dom.split('id="chart-schedule"')[1].split("</svg>")[0]
    assert "CONSOLE" not in log, log


def test_the_console_check_can_fail(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace('"mark"', '"nomark"'))
    dom, log = _dump(broken, tmp_path / "profile")
    assert "CONSOLE" in log
    assert 'data-charts="drawing"' in dom


def test_the_browser_would_refuse_to_fetch(page: Path, tmp_path: Path) -> None:
    curious = tmp_path / "curious.html"
    curious.write_text(page.read_text().replace("</body>", '<script type="module">fetch("http://127.0.0.1:9/x")</script></body>'))
    _, log = _dump(curious, tmp_path / "profile")
    assert "Content Security Policy" in log
