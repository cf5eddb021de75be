"""The report in a real browser: every chart is drawn, nothing is logged, nothing is fetched; with many trials and many groups too."""

import json
import os
import random
import re
import shutil
import subprocess
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fat_ray.analysis import series
from fat_ray.analysis.compare import compare
from fat_ray.api import write_report
from fat_ray.events import GroupInfo, Status
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
    return Path(write_report(write_study(directory, runs, spec=study_spec(steps=40), groups=lite0_groups())))


def _drawn(dom: str) -> dict[str, str]:
    """The drawing in each chart's place, by the chart's name."""
    places = re.split(r'<div class="chart[^"]*" id="chart-', dom)[1:]
    return {place.split('"')[0]: place.split("</svg>")[0] for place in places}


def _cells(drawing: str) -> int:
    return drawing.count('aria-roledescription="rect mark"')


def _dump(page: Path | str, profile: Path, *flags: str) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what the browser logged."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri() if isinstance(page, Path) else page]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, done.stderr


@pytest.mark.parametrize(("theme", "flags"), [("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))])
def test_every_chart_is_drawn_without_errors(page: Path, tmp_path: Path, theme: str, flags: tuple[str, ...]) -> None:
    dom, log = _dump(page, tmp_path / "profile", *flags)
    assert f'data-charts="{theme}"' in dom
    drawn = _drawn(dom)
    assert set(drawn) == {
        *("tradeoff", "tradeoff-time", "zero-shot", "validation", "active", "step-time", "schedule", "drift", "score", "parallel"),
        *("cost-time", "cost-flops"),
    }
    for name, svg in drawn.items():
        assert "<svg" in svg, name
        assert svg.count("<path") > 3, name
    assert "encoder._blocks.3._project_conv" in drawn["schedule"]
    assert "CONSOLE" not in log, log


def test_the_schedule_has_a_cell_for_every_state_of_every_group(page: Path, tmp_path: Path) -> None:
    dom, _ = _dump(page, tmp_path / "profile")
    plan = series.schedule(compare([page.parent]), "t0000-s0")
    assert plan is not None
    froze = sum(event["frozen_groups"] for event in plan.events)
    assert froze > 50
    assert _cells(_drawn(dom)["schedule"]) == len(lite0_groups()) + froze == len(plan.bars)


def test_nothing_is_asked_of_a_network(page: Path, tmp_path: Path) -> None:
    whole = page.read_text()
    # Without its policy and with a script of its own, to see that what is asked for is noticed.
    curious = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", whole)
    (tmp_path / "curious.html").write_text(curious.replace("</body>", '<script type="module">fetch("/elsewhere")</script></body>'))
    (tmp_path / "report.html").write_text(whole)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}"
        assert _asked(f"{origin}/report.html", origin, tmp_path) == set()
        assert _asked(f"{origin}/curious.html", origin, tmp_path) == {f"{origin}/elsewhere"}
        server.shutdown()


def _asked(url: str, origin: str, folder: Path) -> set[str]:
    """What a page asked its browser to fetch, which has errands of its own; from its log of everything on the network."""
    log = folder / "net.json"
    _dump(url, folder / "profile", f"--log-net-log={log}")
    events: list[dict[str, Any]] = json.loads(log.read_text())["events"]
    told = [event.get("params", {}) for event in events]
    assert any(one.get("url") == url for one in told)
    return {one["url"] for one in told if one.get("url") and origin in str(one.get("initiator"))}


def test_the_page_prints(page: Path, tmp_path: Path) -> None:
    _dump(page, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    printed = (tmp_path / "report.pdf").read_bytes()
    pages = len(re.findall(rb"/Type ?/Page\b", printed))
    assert 5 <= pages <= 25


def _write_page(directory: Path, runs: list[FakeRun], steps: int, groups: list[GroupInfo], monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as quick:
        quick.setattr(os, "fsync", lambda _: None)  # hundreds of runs, none of which must survive a power cut
        study = write_study(directory, runs, spec=study_spec(steps=steps, freeze={"warmup_steps": 2}), groups=groups)
    return Path(write_report(study))


def test_five_hundred_trials_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, runs = random.Random(0), [FakeRun("none-s0", role="baseline", label="none", frozen=0)]
    for trial in range(500):
        threshold, window = rng.uniform(-1.2, -0.1), rng.choice([8, 12, 16, 20, 24])
        params = {"freeze.threshold": threshold, "fisher.every": 2, "freeze.every": window}
        ended = {"status": Status.PRUNED, "steps": 4, "reason": "behind"} if trial % 9 == 5 else {}
        runs.append(FakeRun(f"t{trial:04d}-s0", trial=trial, f1=0.5 - 0.1 * threshold + rng.gauss(0, 0.01), params=params, **ended))
    page = _write_page(
        tmp_path / "many", runs, 6, [GroupInfo("all", "all", "Linear", 10), GroupInfo("head", "head", "Linear", 10)], monkeypatch
    )
    dom, log = _dump(page, tmp_path / "profile")
    assert 'data-charts="light"' in dom
    assert "CONSOLE" not in log, log
    drawn = _drawn(dom)
    assert {"importance", "landscape", "parallel", "step-time", "cost-time"} <= set(drawn)
    completed = sum(run.status is Status.COMPLETED for run in runs)
    assert drawn["zero-shot"].count('aria-roledescription="point"') == completed
    assert _cells(drawn["landscape"]) > 50
    assert drawn["cost-time"].count('aria-roledescription="bar"') in (40, 41)  # the first 40, and the baseline if it is not among them
    assert page.stat().st_size < 4_000_000


def test_a_thousand_groups_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [GroupInfo(f"block.{n // 4}.layer[{n % 4}]", f"block.{n // 4}.layer", "Linear", 100) for n in range(1000)]
    runs = [FakeRun("none-s0", role="baseline", label="none", frozen=0), FakeRun("t0000-s0", trial=0, f1=0.59, params={"freeze.every": 2})]
    page = _write_page(tmp_path / "wide", runs, 20, groups, monkeypatch)
    dom, log = _dump(page, tmp_path / "profile")
    plan = series.schedule(compare([page.parent]), "t0000-s0")
    assert plan is not None
    assert plan.is_merged
    assert "CONSOLE" not in log, log
    assert 500 < _cells(_drawn(dom)["schedule"]) == len(plan.bars) < 2000
    assert "neighbours in a layer that froze at the same step share a cell" in dom
    assert page.stat().st_size < 2_500_000


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
