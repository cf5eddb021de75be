"""What is told of a study as it happens, as `fat-ray launch --json` writes it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fat_ray.events import Status
from fat_ray.study.announce import Announcer
from fat_ray.study.plan import Plan
from fat_ray.view.document import line_writer
from tests.support.small_studies import small_study, write_run
from tests.unit.study.test_schedule import TuneTrial
from tests.unit.study.test_search import Driver

pytestmark = pytest.mark.cpu_limit(10)  # imports Ray Tune


def test_a_study_is_told_from_its_start_to_its_end(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[], budget={"trials": 1}, seeds=[3]), tmp_path)
    stream = io.StringIO()
    told = Announcer(driver.spec, tmp_path, driver.ledger, line_writer(stream))
    told.begin(Plan(concurrency=2, workers=1))
    trial = driver.start()
    told.on_trial_start(0, [], TuneTrial(driver.id))
    result = {"step": 4, "position": 0, "val/f1": 0.5, "val/loss": float("nan"), "worker_s": 1.0}
    driver.search.on_trial_result(driver.id, result)
    trial.active = [(0, 1.0), (3, 0.25)]
    told.on_trial_result(0, [], TuneTrial(driver.id), result)
    told.on_trial_result(0, [], TuneTrial(driver.id), {"seeds_done": 1})
    driver.ledger.warn("the disk is nearly full")
    told.on_step_begin(0, [])
    told.on_step_begin(1, [])
    driver.finish(trial)
    told.on_trial_complete(0, [], TuneTrial(driver.id))
    told.end("done", "")

    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        *("study_started", "trial_started", "trial_evaluated", "warning", "trial_ended", "study_ended"),
    ]
    assert all(event["at"].endswith("+00:00") for event in events)
    started, trial_started, evaluated, warning, trial_ended, ended = events
    assert (started["format"], started["version"], started["study"], started["trials"]) == ("fat_ray.events", 1, "small", 1)
    assert (started["directory"], started["seeds"], started["steps"], started["concurrency"]) == (str(tmp_path), [3], 8, 2)
    assert trial_started["setting"] == trial.params
    assert (trial_started["trial"], trial_started["runs"], trial_started["baseline"]) == ("t0000", ["t0000-s3"], False)
    assert (evaluated["run"], evaluated["seed"], evaluated["step"], evaluated["steps"]) == ("t0000-s3", 3, 4, 8)
    assert (evaluated["metrics"], evaluated["active_fraction"]) == ({"val/f1": 0.5, "val/loss": None}, 0.25)
    assert warning["message"] == "the disk is nearly full"
    assert (trial_ended["state"], trial_ended["at_budget"], trial_ended["front"]) == (
        "completed",
        {"val/f1": 0.5, "mean_active": 50.0},
        ["t0000"],
    )
    assert (ended["state"], ended["counts"], ended["front"], ended["best_compromise"]) == ("done", {"completed": 1}, ["t0000"], "t0000")
    assert ended["warnings"] == ["the disk is nearly full"]


def test_why_a_trial_has_no_result_is_told(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[]), tmp_path)
    events: list[Mapping[str, Any]] = []
    told = Announcer(driver.spec, tmp_path, driver.ledger, events.append)
    trial = driver.start()
    write_run(trial.jobs[0], Status.DIVERGED, reason="the loss became NaN")
    driver.search.on_trial_complete(driver.id, {})
    told.on_trial_error(0, [], TuneTrial(driver.id))
    assert (events[0]["state"], events[0]["reason"], events[0]["at_budget"]) == ("diverged", "the loss became NaN", None)


def test_a_listener_that_fails_is_told_nothing_more_and_the_study_goes_on(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[]), tmp_path)
    calls: list[Mapping[str, Any]] = []

    def listen(event: Mapping[str, Any]) -> None:
        calls.append(event)
        raise BrokenPipeError("nobody reads")

    told = Announcer(driver.spec, tmp_path, driver.ledger, listen)
    told.begin(Plan(concurrency=1, workers=1))
    told.end("done", "")
    assert len(calls) == 1
    assert driver.ledger.notes == ["events are told no more, since the listener failed: BrokenPipeError: nobody reads"]
