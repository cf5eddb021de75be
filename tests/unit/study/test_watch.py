"""Who hears what of a study: the ledger of warnings, the directory of signs of life, the listener of events."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fat_ray.errors import OutputError, RecordError
from fat_ray.records.driver import read_report
from fat_ray.study import beacon
from fat_ray.study.ledger import Close, Ledger
from fat_ray.study.plan import Plan
from fat_ray.study.watch import Watch, watched
from fat_ray.train.lease import Driver, write_driver
from tests.support.small_studies import small_study

pytestmark = pytest.mark.cpu_limit(10)  # imports Ray Tune

PLAN = Plan(concurrency=1, workers=1)


@contextmanager
def study(directory: Path, ledger: Ledger, events: list[Mapping[str, Any]] | None = None) -> Iterator[Watch]:
    with watched(small_study(), directory, ledger, quiet=True, on_event=None if events is None else events.append) as watch:
        yield watch


def last_word(directory: Path) -> tuple[str, str]:
    report = read_report(directory)
    assert report is not None
    return report.state, report.detail


def test_the_directory_tells_that_the_driver_lives_and_how_the_study_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beacon, "BEAT_S", 0.01)
    ledger = Ledger(3)
    with study(tmp_path, ledger) as watch:
        assert last_word(tmp_path) == ("running", "")
        watch.begin(PLAN, 4096)
        ledger.total, ledger.close = 2, Close.OUT_OF_DISK
        ledger.warn("the disk is nearly full")
        while last_word(tmp_path)[0] == "running":  # the next beat says it; the test's time limit ends a wait in vain
            pass
        assert last_word(tmp_path) == ("ending", "ends early: too little disk space")
    assert last_word(tmp_path) == ("stopped", "too little disk space")
    report = read_report(tmp_path)
    assert report is not None
    assert (report.total, report.warnings) == (2, ["the disk is nearly full"])


@pytest.mark.parametrize(
    ("failure", "state", "detail"),
    [(KeyboardInterrupt(), "stopped", "interrupted"), (ZeroDivisionError("no\nway"), "failed", "ZeroDivisionError: no")],
)
def test_whatever_ends_it_is_told(tmp_path: Path, failure: BaseException, state: str, detail: str) -> None:
    events: list[Mapping[str, Any]] = []

    def run() -> None:
        with study(tmp_path, Ledger(3), events) as watch:
            watch.begin(PLAN, 4096)
            raise failure

    with pytest.raises(type(failure)):
        run()
    assert last_word(tmp_path) == (state, detail)
    assert [event["event"] for event in events] == ["study_started", "study_ended"]
    assert (events[1]["state"], events[1]["detail"]) == (state, detail)


@pytest.mark.parametrize(("close", "detail"), [(None, ""), (Close.OUT_OF_TIME, "time budget used up")])
def test_a_study_that_went_well_or_used_its_budget_up_is_done(tmp_path: Path, close: Close | None, detail: str) -> None:
    ledger = Ledger(3)
    with study(tmp_path, ledger) as watch:
        watch.begin(PLAN, 4096)
        ledger.close = close
    assert last_word(tmp_path) == ("done", detail)


def test_a_driver_that_another_one_has_replaced_is_silent(tmp_path: Path) -> None:
    write_driver(tmp_path, Driver(number=1, worked_s=0.0))
    with study(tmp_path, Ledger(3)) as watch:
        watch.begin(PLAN, 4096)
        write_driver(tmp_path, Driver(number=2, worked_s=0.0))
        (tmp_path / "control" / "beacon.json").unlink()
    assert read_report(tmp_path) is None


def test_a_study_without_a_result_has_failed(tmp_path: Path) -> None:
    ledger = Ledger(3, failure="the search ran no trial")
    with study(tmp_path, ledger) as watch:
        watch.begin(PLAN, 4096)
    assert last_word(tmp_path) == ("failed", "the search ran no trial")


def test_too_little_space_ends_it_before_anything_is_told(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    with pytest.raises(OutputError, match="too little space"), study(tmp_path, Ledger(3), events) as watch:
        watch.begin(PLAN, 2**60)
    assert events == []


def test_warnings_of_this_package_are_noted_once_and_others_left_alone(tmp_path: Path) -> None:
    ledger, log = Ledger(3), logging.getLogger("fat_ray.records.wandb")
    with study(tmp_path, ledger):
        for _ in range(2):
            log.warning("W&B mirror off since run %s", "t0003-s0")
        log.info("nothing to speak of")
        warnings.warn_explicit("the warm executor cannot be used", UserWarning, str(Path("fat_ray") / "study" / "tune.py"), 1)
        with pytest.warns(UserWarning, match="of somebody else"):
            warnings.warn_explicit("of somebody else", UserWarning, "elsewhere.py", 1)
    assert ledger.notes == ["W&B mirror off since run t0003-s0", "the warm executor cannot be used"]
    assert log.parent is not None
    assert logging.getLogger("fat_ray").propagate


def test_no_secret_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "planted-0123456789")
    ledger = Ledger(3)
    with study(tmp_path, ledger):
        logging.getLogger("fat_ray").warning("refused planted-0123456789")
    assert ledger.notes == ["refused [redacted]"]


def test_what_a_full_disk_breaks_is_said_to_be_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        with study(tmp_path, Ledger(3)) as watch:
            watch.begin(PLAN, 4096)
            monkeypatch.setattr("fat_ray.study.watch.free_bytes", lambda _: 0)
            raise EOFError("Ran out of input")  # as Ray says it

    with pytest.raises(RecordError, match=r"is full: 0\.0 MiB free\. What was recorded is whole; make space, then fat-ray resume"):
        run()
    state, detail = last_word(tmp_path)
    assert state == "failed"
    assert "is full" in detail
