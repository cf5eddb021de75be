"""Whether a driver lives, judged by what it says of itself."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fat_ray.records import driver
from fat_ray.records.driver import DriverReport, judge, read_report, write_report

BEAT = datetime(2026, 3, 14, 9, 26, tzinfo=UTC)
REPORT = DriverReport(os.getpid(), driver.this_host(), "2026-03-14T09:00:00+00:00", BEAT.isoformat(), "running", "", 10, ["a warning"])


def after(seconds: float) -> datetime:
    return BEAT + timedelta(seconds=seconds)


NO_PROCESS = 2**30
"""More than any system counts to."""


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    write_report(tmp_path, REPORT)
    assert read_report(tmp_path) == REPORT


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}'])
def test_what_cannot_be_understood_is_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "beacon.json").write_text(text)
    assert read_report(tmp_path) is None


def test_a_driver_that_beats_here_runs(tmp_path: Path) -> None:
    assert judge(REPORT, tmp_path, after(2)) == ("running", "")
    assert judge(replace(REPORT, state="ending", detail="ends early: interrupted"), tmp_path, after(2)) == (
        "ending",
        "ends early: interrupted",
    )


def test_elsewhere_its_last_sign_of_life_is_named(tmp_path: Path) -> None:
    state, detail = judge(replace(REPORT, host="node7", pid=4711), tmp_path, after(25))
    assert (state, detail) == ("running", "process 4711 on node7, last sign of life 25 s ago")
    assert judge(replace(REPORT, host="node7"), tmp_path, after(-3))[1].endswith("last sign of life 0 s ago")  # clocks differ


def test_a_silent_driver_is_gone_and_what_to_do_is_said(tmp_path: Path) -> None:
    state, detail = judge(replace(REPORT, host="node7", pid=4711), tmp_path, after(31))
    assert state == "gone"
    assert detail.startswith(f"the driver (process 4711 on node7) is gone, its last sign of life was at {BEAT.isoformat()}")
    assert detail.endswith(f"fat-ray resume {tmp_path} goes on")
    assert judge(replace(REPORT, pid=NO_PROCESS), tmp_path, after(7))[0] == "gone"


def test_a_silent_driver_whose_process_is_here_may_be_held_up(tmp_path: Path) -> None:
    state, detail = judge(REPORT, tmp_path, after(100))
    assert state == "running"
    assert "is there, but gave no sign of life for 100 s" in detail


def test_the_last_word_stands_for_ever(tmp_path: Path) -> None:
    assert judge(replace(REPORT, state="done"), tmp_path, after(1e6)) == ("done", "")
    assert judge(replace(REPORT, state="failed", detail="no result"), tmp_path, after(1e6)) == ("failed", "no result")
    state, detail = judge(replace(REPORT, state="stopped", detail="interrupted"), tmp_path, after(1e6))
    assert (state, detail) == ("stopped", f"interrupted; fat-ray resume {tmp_path} goes on")
