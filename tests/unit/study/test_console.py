"""What the console shows, on a terminal of fixed size and on none. How it looks: tests/unit/view/test_render.py."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fat_ray.events import RunEnd, Status
from fat_ray.spec.baseline import as_section
from fat_ray.study.console import ConsoleCallback, notebook
from fat_ray.study.jobs import reference_trial, search_trial
from fat_ray.study.ledger import Close, Ledger
from fat_ray.study.portrait import Portrait
from tests.support.small_studies import small_study
from tests.unit.study.test_schedule import TuneTrial

SEARCH = {
    "freeze.threshold": {"type": "float", "low": -1.0, "high": 0.0},
    "freeze.every": {"type": "int", "low": 1, "high": 9},
    "fisher.every": {"type": "int", "low": 1, "high": 9},
}


def run_end(f1: float, mean_active: float) -> RunEnd:
    return RunEnd(Status.COMPLETED, "", 8, 3.0, 2.0, 6.0, 800, 80.0, mean_active, mean_active / 100, {"val/f1": f1})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    study = small_study(search=SEARCH, seeds=[0, 1])
    ledger = Ledger(5)
    done, running, bad, waiting = (
        reference_trial(study, tmp_path, as_section("none")),
        search_trial(study, tmp_path, 0, {"freeze.threshold": -0.123456, "freeze.every": 3, "fisher.every": 2}),
        search_trial(study, tmp_path, 1, {}),
        search_trial(study, tmp_path, 2, {}),
    )
    for trial in (done, running, bad, waiting):
        ledger.add(trial.name, trial)
    done.note({"step": 8, "val/f1": 0.61234})
    done.status, done.started_s, done.ended_s, done.results = Status.COMPLETED, 0.0, 20.0, [run_end(0.61234, 100.0)] * 2
    running.started_s = 20.0
    running.note({"step": 2, "val/f1": 0.7})
    running.note({"step": 4, "val/f1": 0.5})
    running.active = [(0, 1.0), (3, 0.426)]
    bad.status, bad.reason, bad.started_s, bad.ended_s = Status.DIVERGED, "loss is nan at step 3", 20.0, 30.0
    return ledger


def shown(ledger: Ledger, **options: bool) -> tuple[ConsoleCallback, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, width=120, height=30, color_system=None)
    return ConsoleCallback(small_study(search=SEARCH), ledger, console=console, **options), text


def test_the_picture_is_that_of_the_ledger(ledger: Ledger) -> None:
    picture = Portrait(small_study(search=SEARCH), ledger)(ledger.started_s + 40.0)
    assert (picture.state, picture.total, picture.elapsed_s) == ("running", 5, 40.0)
    assert [trial.state for trial in picture.trials] == ["completed", "running", "diverged", "waiting"]
    none, running, *_ = picture.trials
    assert (none.values, none.is_baseline, none.seeds_done) == ([0.61234, 100.0], True, 2)
    assert (running.last, running.best, running.step, running.seeds, running.values) == (0.5, 0.7, 4, 2, None)
    assert [trial.name for trial in picture.front] == ["none"]


def test_a_value_that_is_missing_keeps_a_trial_off_the_front(ledger: Ledger) -> None:
    ledger.of("none").results = [run_end(float("nan"), 100.0)] * 2
    assert Portrait(small_study(search=SEARCH), ledger)().front == []


def test_an_early_end_is_announced(ledger: Ledger) -> None:
    ledger.close = Close.INTERRUPTED
    callback, text = shown(ledger)
    callback._console.print(callback.render())
    assert "ends early: interrupted" in text.getvalue()


def test_without_a_terminal_there_is_a_line_per_happening(ledger: Ledger) -> None:
    callback, text = shown(ledger)
    callback.setup()
    callback.on_trial_start(0, [], TuneTrial("t0000"))
    callback.on_trial_result(0, [], TuneTrial("t0000"), {"step": 4})
    callback.on_trial_result(0, [], TuneTrial("t0000"), {"seeds_done": 1})
    callback.on_trial_complete(0, [], TuneTrial("t0001"))
    callback.on_trial_complete(0, [], TuneTrial("none"))
    callback.close("done", "")
    lines = text.getvalue().splitlines()
    assert lines[0] == "t0000 started with threshold=-0.123 freeze.every=3 fisher.every=2"
    assert lines[1] == "t0000 seed 1/2 step 4/8: last val/f1 0.500, active 43\N{NO-BREAK SPACE}%"
    assert lines[2].startswith("t0001 diverged after 10 s: loss is nan at step 3 (2 of 5 trials done, about ")
    assert lines[3].startswith("none completed after 20 s: val/f1 0.612, mean_active 100 at budget (2 of 5 trials done, about ")
    assert len(lines) == 4


def test_each_warning_is_a_line_once(ledger: Ledger) -> None:
    callback, text = shown(ledger)
    ledger.warn("the disk is nearly full")
    callback.on_step_begin(0, [])
    ledger.warn("the disk is nearly full")
    ledger.warn("W&B is away")
    callback.on_step_begin(1, [])
    callback.close("done", "")
    assert text.getvalue() == "warning: the disk is nearly full\nwarning: W&B is away\n"


def test_quiet_is_quiet(ledger: Ledger) -> None:
    callback, text = shown(ledger, quiet=True)
    ledger.warn("the disk is nearly full")
    callback.setup()
    callback.on_trial_start(0, [], TuneTrial("t0000"))
    callback.on_step_begin(0, [])
    callback.on_trial_complete(0, [], TuneTrial("t0001"))
    callback.close("done", "")
    assert text.getvalue() == ""


class Terminal(io.StringIO):
    """A terminal that remembers what was written."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, **options: bool) -> tuple[ConsoleCallback, Terminal]:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", io.StringIO())  # as while a study runs
    monkeypatch.setattr("sys.__stdout__", Terminal())
    console = Console(file=terminal, width=100, height=30, force_terminal=True, color_system=None)
    return ConsoleCallback(small_study(search=SEARCH), ledger, console=console, **options), terminal


def test_on_a_terminal_the_picture_stays_with_all_its_warnings_at_the_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, terminal = on_a_terminal(ledger, monkeypatch)
    for number in range(6):
        ledger.warn(f"warning number {number}")
    callback.setup()
    callback.on_trial_start(0, [], TuneTrial("t0000"))
    callback.close("stopped", "time budget used up")
    first, *_, last = terminal.getvalue().split("small")
    assert "t0000 started" not in first
    assert "stopped" in last
    assert "time budget used up" in last
    assert all(f"! warning number {number}" in last for number in range(6))


def test_a_terminal_that_became_narrower_is_wiped_before_the_next_picture(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, terminal = on_a_terminal(ledger, monkeypatch)
    wipe = "\x1b[2J\x1b[H"
    callback._width = 100
    callback.render()
    assert wipe not in terminal.getvalue()
    callback._console.width = 80
    callback.render()
    assert terminal.getvalue().count(wipe) == 1
    callback._console.width = 120
    callback.render()
    assert terminal.getvalue().count(wipe) == 1


def test_where_somebody_listens_on_stdout_there_are_lines(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, terminal = on_a_terminal(ledger, monkeypatch, plain=True)
    callback.setup()
    callback.on_trial_start(0, [], TuneTrial("t0000"))
    assert terminal.getvalue().startswith("t0000 started with")


def test_in_a_notebook_one_page_is_kept_up_to_date(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pages, text = [0.0], list[str](), io.StringIO()
    monkeypatch.setattr("fat_ray.study.console.time.monotonic", lambda: clock[0])
    callback = ConsoleCallback(small_study(search=SEARCH), ledger, console=Console(file=text), show_html=pages.append)
    for clock[0] in (0.0, 0.5, 1.5):
        callback.on_step_begin(0, [])
    callback.on_trial_start(0, [], TuneTrial("t0000"))
    ledger.warn("the disk is nearly full")
    callback.close("done", "")
    assert len(pages) == 3
    assert "t0000" in pages[0]
    assert "the disk is nearly full" in pages[-1]
    assert text.getvalue() == ""


def test_this_is_no_notebook() -> None:
    assert notebook() is None


def test_a_notebook_is_known_by_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    shell = type("ZMQInteractiveShell", (), {})()
    display = SimpleNamespace(HTML=str, display=lambda page, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    show = notebook()
    assert show is not None
    show("<p>")
    assert shown == ["<p>"]
