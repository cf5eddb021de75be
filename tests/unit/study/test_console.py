"""What the console shows, on a terminal of fixed size and on none."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fat_ray.events import Status
from fat_ray.spec.baseline import as_section
from fat_ray.study.console import ConsoleCallback, duration, short_labels, visible
from fat_ray.study.jobs import reference_trial, search_trial
from fat_ray.study.ledger import Close, Ledger
from tests.support.small_studies import small_study
from tests.unit.study.test_schedule import TuneTrial

SEARCH = {
    "freeze.threshold": {"type": "float", "low": -1.0, "high": 0.0},
    "freeze.every": {"type": "int", "low": 1, "high": 9},
    "fisher.every": {"type": "int", "low": 1, "high": 9},
}


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
    done.status, done.started_s, done.ended_s = Status.COMPLETED, 0.0, 20.0
    done.note({"step": 8, "val/f1": 0.61234, "mean_active_fraction": 1.0})
    running.started_s = 20.0
    running.note({"step": 4, "val/f1": 0.5, "mean_active_fraction": 0.426})
    bad.status, bad.reason, bad.started_s, bad.ended_s = Status.DIVERGED, "loss is nan at step 3", 20.0, 30.0
    return ledger


def shown(ledger: Ledger, **options: bool) -> tuple[ConsoleCallback, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, width=120, height=30, color_system=None)
    return ConsoleCallback(small_study(search=SEARCH), ledger, console=console, **options), text


def test_the_table_tells_every_trial_and_the_header_counts_them(ledger: Ledger) -> None:
    callback, text = shown(ledger)
    callback._console.print(callback.render())
    page = text.getvalue()
    assert "1 done · 1 running · 0 pruned · 1 failed  of 5" in page
    rows = {line.split()[0]: line for line in page.splitlines() if line.strip()}
    assert "full fine-tuning" in rows["none"]
    assert "completed" in rows["none"]
    assert "0.612" in rows["none"]
    assert "threshold=-0.123 freeze.every=3 fisher.every=2" in rows["t0000"]
    assert "running" in rows["t0000"]
    assert "4/8" in rows["t0000"]
    assert "43 %" in rows["t0000"]
    assert "diverged" in rows["t0001"]
    assert "loss is nan at step 3" in rows["t0001"]
    assert "waiting" in rows["t0002"]


def test_an_early_end_is_announced(ledger: Ledger) -> None:
    ledger.close = Close.INTERRUPTED
    callback, text = shown(ledger)
    callback._console.print(callback.render())
    assert "ending early: interrupted" in text.getvalue()


def test_without_a_terminal_there_is_a_line_per_happening(ledger: Ledger) -> None:
    callback, text = shown(ledger)
    callback.setup()
    callback.on_trial_start(0, [], TuneTrial("t0000"))
    callback.on_trial_result(0, [], TuneTrial("t0000"), {"step": 4})
    callback.on_trial_result(0, [], TuneTrial("t0000"), {"seeds_done": 1})
    callback.on_trial_complete(0, [], TuneTrial("t0001"))
    callback.close()
    lines = text.getvalue().splitlines()
    assert lines[0] == "t0000 started with threshold=-0.123 freeze.every=3 fisher.every=2"
    assert lines[1] == "t0000 step 4/8 val/f1 0.500 active 43 %"
    assert lines[2].startswith("t0001 diverged after 10 s: loss is nan at step 3 (2 of 5 done, about ")
    assert len(lines) == 3


def test_quiet_is_quiet(ledger: Ledger) -> None:
    callback, text = shown(ledger, quiet=True)
    callback.setup()
    callback.on_trial_start(0, [], TuneTrial("t0000"))
    callback.on_trial_complete(0, [], TuneTrial("t0001"))
    assert text.getvalue() == ""


def test_progress_counts_seeds_and_steps(ledger: Ledger) -> None:
    running = ledger.of("t0000")
    assert running.progress == pytest.approx((0 + 4 / 8) / 2)
    running.seeds_done, running.step = 1, 2
    assert running.progress == pytest.approx((1 + 2 / 8) / 2)
    assert ledger.progress == pytest.approx((1 + 1 + 0.625) / 5)


def test_time_left_is_what_the_typical_trial_took(ledger: Ledger) -> None:
    assert ledger.time_left_s(100.0) == pytest.approx(20.0 * 5 * (1 - (1 + 1 + 0.25) / 5))


def test_labels_are_as_short_as_they_can_be() -> None:
    assert short_labels(["freeze.threshold", "freeze.every", "fisher.every", "a.b.c", "d.b.c"]) == {
        "freeze.threshold": "threshold",
        "freeze.every": "freeze.every",
        "fisher.every": "fisher.every",
        "a.b.c": "a.b.c",
        "d.b.c": "d.b.c",
    }


def test_on_a_small_screen_what_runs_stays_visible(tmp_path: Path) -> None:
    study = small_study()
    trials = [search_trial(study, tmp_path, number, {}) for number in range(9)]
    for trial in trials[:3] + trials[4:8]:
        trial.status = Status.COMPLETED
    assert [trial.name for trial in visible(trials, 4)] == ["t0003", "t0006", "t0007", "t0008"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (-1, "0 s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
