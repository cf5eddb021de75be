"""Early stopping by request, with hand-made trials and no Ray."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from fat_ray.events import Status
from fat_ray.spec.baseline import as_section
from fat_ray.spec.study import SchedulerSpec
from fat_ray.study.jobs import reference_trial, search_trial
from fat_ray.study.ledger import Ledger
from fat_ray.study.schedule import CooperativeScheduler
from fat_ray.train.stop import stop_requested
from tests.support.small_studies import small_study

STEPS = 8


@dataclass(frozen=True)
class TuneTrial:
    """As much of Tune's trial as a scheduler looks at."""

    trial_id: str


class Controller:
    """As much of Tune's controller as a scheduler looks at: somebody always waits, which tempts the median rule to pause."""

    def get_live_trials(self) -> list[Any]:
        return [SimpleNamespace(status="PENDING")]


CONTROLLER = Controller()


class Race:
    """Trials that report to one scheduler."""

    def __init__(self, directory: Path, num_trials: int, **scheduler: Any) -> None:
        spec = SchedulerSpec.model_validate({"grace_steps": 2, **scheduler})
        self.study, self.directory = small_study(seeds=[0, 1]), directory
        self.ledger = Ledger(num_trials)
        self.scheduler = CooperativeScheduler(spec, STEPS, self.ledger, directory)
        for number in range(num_trials):
            self.ledger.add(str(number), search_trial(self.study, directory, number, {}))
            self.scheduler.on_trial_add(CONTROLLER, TuneTrial(str(number)))

    def report(self, number: int, step: int, value: float, position: int = 0) -> str:
        result = {"step": step, "val/f1": value, "val/loss": value, "position": position}
        return self.scheduler.on_trial_result(CONTROLLER, TuneTrial(str(number)), result)

    def finish_seed(self, number: int, done: int) -> None:
        self.scheduler.on_trial_result(CONTROLLER, TuneTrial(str(number)), {"seeds_done": done})

    def asked(self, number: int, seed: int = 0) -> Status | None:
        return stop_requested(self.directory, f"t{number:04d}-s{seed}")


def test_asha_asks_the_worse_half_to_stop_and_tune_goes_on(tmp_path: Path) -> None:
    race = Race(tmp_path, 3, name="asha")
    decisions = [race.report(number, 2, value) for number, value in enumerate([0.5, 0.9, 0.1])]
    assert set(decisions) == {TrialScheduler.CONTINUE}
    assert [race.asked(number) for number in range(3)] == [None, None, Status.PRUNED]
    assert race.ledger.of("2").asked_to_stop is Status.PRUNED
    assert stop_requested(tmp_path, "t0002-s1") is None


def test_nothing_is_judged_before_the_grace_steps(tmp_path: Path) -> None:
    race = Race(tmp_path, 2, name="asha", grace_steps=4)
    for number, value in enumerate([0.9, 0.1]):
        race.report(number, 2, value)
    assert race.asked(1) is None
    race.report(0, 4, 0.9)
    race.report(1, 4, 0.1)
    assert race.asked(1) is Status.PRUNED


def test_a_trial_at_its_last_step_is_not_asked(tmp_path: Path) -> None:
    race = Race(tmp_path, 2, name="asha")
    race.report(0, STEPS, 0.9)
    race.report(1, STEPS, 0.1)
    assert race.asked(1) is None


def test_minimizing_turns_the_comparison(tmp_path: Path) -> None:
    race = Race(tmp_path, 2, name="asha", metric="val/loss", direction="minimize")
    race.report(0, 2, 0.1)
    race.report(1, 2, 0.9)
    assert (race.asked(0), race.asked(1)) == (None, Status.PRUNED)


def test_a_trial_asked_to_stop_is_judged_no_more(tmp_path: Path) -> None:
    race = Race(tmp_path, 3, name="asha")
    for number, value in enumerate([0.5, 0.1]):
        race.report(number, 2, value)
    race.report(1, 4, 99.0)  # still on its way out: would raise the bar for the others
    race.report(0, 4, 0.5)
    assert (race.asked(0), race.asked(1)) == (None, Status.PRUNED)
    race.scheduler.on_trial_complete(CONTROLLER, TuneTrial("1"), {})


@pytest.mark.parametrize("name", ["asha", "median"])
def test_reports_without_a_judged_value_are_passed_over(tmp_path: Path, name: str) -> None:
    race = Race(tmp_path, 2, name=name)
    race.report(0, 2, 0.9)
    race.report(1, 2, math.nan)
    race.scheduler.on_trial_result(CONTROLLER, TuneTrial("1"), {"seeds_done": 1})
    race.scheduler.on_trial_complete(CONTROLLER, TuneTrial("1"), {"seeds_done": 1})
    race.scheduler.on_trial_complete(CONTROLLER, TuneTrial("0"), {"seeds_done": 1})
    assert race.asked(1) is None


def test_the_median_rule_asks_what_stays_below_the_median(tmp_path: Path) -> None:
    race = Race(tmp_path, 5, name="median")
    for step in (2, 4):
        decisions = {race.report(number, step, 0.5 + number / 10) for number in range(4)}
        assert decisions == {TrialScheduler.CONTINUE}
    for number in range(4):
        race.scheduler.on_trial_complete(CONTROLLER, TuneTrial(str(number)), {"seeds_done": 1})
    race.report(4, 4, 0.1)
    assert race.asked(4) is Status.PRUNED


def test_baselines_are_neither_judged_nor_a_bar(tmp_path: Path) -> None:
    race = Race(tmp_path, 1, name="asha")
    race.ledger.add("b", reference_trial(race.study, tmp_path, as_section("none")))
    race.scheduler.on_trial_add(CONTROLLER, TuneTrial("b"))
    race.scheduler.on_trial_result(CONTROLLER, TuneTrial("b"), {"step": 2, "val/f1": 0.99})
    race.report(0, 2, 0.1)
    assert race.asked(0) is None
    assert stop_requested(tmp_path, "none-s0") is None
    race.scheduler.on_trial_complete(CONTROLLER, TuneTrial("b"), {})


def test_without_a_scheduler_nothing_is_stopped(tmp_path: Path) -> None:
    race = Race(tmp_path, 2, name="none")
    race.report(0, 2, 0.9)
    race.report(1, 2, 0.0)
    assert race.asked(1) is None
    race.scheduler.on_trial_error(CONTROLLER, TuneTrial("1"))


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_dies_before_its_first_report_is_forgotten(tmp_path: Path, name: str) -> None:
    race = Race(tmp_path, 2, name=name)
    race.scheduler.on_trial_error(CONTROLLER, TuneTrial("1"))
    race.report(0, 2, 0.5)
    assert race.asked(0) is None


def test_later_seeds_are_judged_by_the_mean_over_the_seeds_so_far(tmp_path: Path) -> None:
    race = Race(tmp_path, 3, name="asha")
    for number, values in enumerate([(0.6, 0.6), (0.9, 0.5), (0.7, 0.2)]):
        for position, value in enumerate(values):
            race.report(number, 2, value, position)
            if position == 0:
                race.finish_seed(number, 1)
    # 0.7 at the second seed of trial 1 is above the bar of 0.6, though 0.5 alone is not; 0.45 of trial 2 is below both others
    assert [(race.asked(number, 0), race.asked(number, 1)) for number in range(3)] == [(None, None), (None, None), (None, Status.PRUNED)]


def test_a_request_that_came_too_late_for_a_seed_leaves_the_next_one_under_judgement(tmp_path: Path) -> None:
    race = Race(tmp_path, 2, name="asha")
    race.report(0, 2, 0.9)
    race.report(1, 2, 0.1)
    assert race.asked(1) is Status.PRUNED
    race.finish_seed(1, 1)  # it ended before it saw the request
    race.report(1, 2, 0.2, position=1)
    assert race.asked(1, 1) is Status.PRUNED


@pytest.mark.parametrize("name", ["asha", "hyperband", "median", "patience"])
def test_a_metric_that_is_not_reported_is_told_once(tmp_path: Path, name: str) -> None:
    race = Race(tmp_path, 1, name=name, metric="val/iou")
    for step in (2, 4):
        race.report(0, step, 0.5)
    assert race.ledger.notes == [
        "scheduler.metric val/iou is not reported, so no trial was stopped early; the task reports val/f1, val/loss"
    ]


def test_trials_of_an_earlier_driver_are_a_bar_for_the_next(tmp_path: Path) -> None:
    race = Race(tmp_path, 3, name="asha")
    for number, value in enumerate([0.9, 0.5]):
        race.report(number, 2, value)
    again = CooperativeScheduler(SchedulerSpec(name="asha", grace_steps=2), STEPS, race.ledger, tmp_path)
    again.on_trial_result(CONTROLLER, TuneTrial("2"), {"step": 2, "val/f1": 0.6})
    assert race.asked(2) is Status.PRUNED


def test_patience_stops_a_trial_that_no_longer_improves(tmp_path: Path) -> None:
    race = Race(tmp_path, 2, name="patience", patience=2, min_delta=0.05, metric="val/loss", direction="minimize")
    for step, rising, falling in ((2, 0.5, 0.5), (4, 0.48, 0.4), (6, 0.47, 0.3)):
        race.report(0, step, rising)
        race.report(1, step, falling)
    assert (race.asked(0), race.asked(1)) == (Status.PRUNED, None)
