"""Rules of early stopping against Ray's own, against closed forms, and on running means."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from fat_ray.spec.study import SchedulerSpec
from fat_ray.study.judges import Halving, Hyperband, Median, Patience, build_judge, rungs
from tests.unit.study.test_schedule import TuneTrial

pytestmark = pytest.mark.cpu_limit(10)  # imports Ray Tune

STEPS, EVERY = 48, 4


def spec(name: str, **settings: Any) -> SchedulerSpec:
    return SchedulerSpec.model_validate({"name": name, "grace_steps": 4, **settings})


def curves(seed: int, trials: int = 12) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.random() + step / 20 for step in range(EVERY, STEPS + 1, EVERY)] for _ in range(trials)]


def stopped_by_us(name: str, found: list[list[float]]) -> dict[int, int]:
    """Trial to the step at which it was stopped, all trials running side by side."""
    judge = build_judge(spec(name), STEPS)
    assert judge is not None
    stopped: dict[int, int] = {}
    for position in range(len(found[0])):
        step = (position + 1) * EVERY
        for trial, values in enumerate(found):
            curve = {(at + 1) * EVERY: value for at, value in enumerate(values[: position + 1])}
            if trial not in stopped and judge.stops(trial, 0, curve):
                stopped[trial] = step
    return stopped


def stopped_by_ray(scheduler: Any, found: list[list[float]]) -> dict[int, int]:
    controller = SimpleNamespace(get_live_trials=list)
    trials = [TuneTrial(str(number)) for number in range(len(found))]
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    stopped: dict[int, int] = {}
    for position in range(len(found[0])):
        step = (position + 1) * EVERY
        for number, values in enumerate(found):
            if number not in stopped:
                result = {"step": step, "f1": values[position]}
                if scheduler.on_trial_result(controller, trials[number], result) == TrialScheduler.STOP:
                    stopped[number] = step
    return stopped


@pytest.mark.parametrize("seed", range(10))
def test_halving_stops_whom_ray_stops(seed: int) -> None:
    found = curves(seed)
    ray = ASHAScheduler("step", "f1", "max", max_t=STEPS, grace_period=4, reduction_factor=2, stop_last_trials=False)
    ours = stopped_by_us("asha", found)
    assert ours == stopped_by_ray(ray, found)
    assert ours


@pytest.mark.parametrize("seed", range(10))
def test_the_median_rule_stops_whom_ray_stops(seed: int) -> None:
    found = curves(seed)
    ray = MedianStoppingRule("step", "f1", "max", grace_period=4, hard_stop=True)
    ours = stopped_by_us("median", found)
    assert ours == stopped_by_ray(ray, found)
    assert ours


def test_rungs_are_powers_of_the_reduction_before_the_last_step() -> None:
    assert rungs(spec("asha"), STEPS) == [4, 8, 16, 32]
    assert rungs(spec("asha", reduction=1.5, grace_steps=40), 60) == [40]
    assert rungs(spec("asha", grace_steps=48), STEPS) == []


def test_a_late_first_evaluation_is_compared_at_the_highest_rung_it_passed() -> None:
    judge = Halving([4, 8, 16], 2)
    assert not judge.stops(0, 0, {8: 0.5})
    assert judge.stops(1, 0, {8: 0.4})
    assert not judge.stops(0, 0, {8: 0.5, 12: 0.0})  # at no new rung
    assert not judge.stops(2, 0, {4: 0.0})  # nobody was seen at that rung


def test_brackets_of_hyperband_have_later_and_later_first_rungs_and_fixed_shares() -> None:
    judge = Hyperband([4, 8, 16, 32], 2)
    number = Counter(judge.bracket(trial) for trial in range(1000))
    weights = [2**left / (left + 1) for left in (4, 3, 2, 1, 0)]  # trials per bracket times steps per trial is level
    for bracket, weight in enumerate(weights):
        assert number[bracket] == pytest.approx(1000 * weight / sum(weights), abs=15)
    assert set(number) == set(range(5))


def test_trials_of_hyperband_are_compared_within_their_bracket_only() -> None:
    judge = Hyperband([4, 8, 16, 32], 2)
    members = {bracket: [trial for trial in range(200) if judge.bracket(trial) == bracket] for bracket in range(5)}
    for bracket, first_rung in enumerate([4, 8, 16, 32]):
        good, bad, *_ = members[bracket]
        assert not judge.stops(good, 0, {first_rung // 2: 0.9})
        assert not judge.stops(bad, 0, {first_rung // 2: 0.1})
        assert not judge.stops(good, 0, {first_rung: 0.9})
        assert judge.stops(bad, 0, {first_rung: 0.1})
    assert not any(judge.stops(trial, 0, {step: -1.0}) for trial in members[4] for step in range(4, 48, 4))


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([0.5, 0.6, 0.7, 0.8], False),
        ([0.5, 0.5, 0.5], False),
        ([0.5, 0.5, 0.5, 0.5], True),
        ([0.5, 0.55, 0.59, 0.6], True),  # none is more than 0.1 above 0.5
        ([0.5, 0.55, 0.61, 0.6], False),
        ([0.5, 0.4, 0.45, 0.49], True),
    ],
)
def test_patience_counts_evaluations_without_improvement(values: list[float], stops: bool) -> None:
    judge = Patience(grace=1, evaluations=3, min_delta=0.1)
    assert judge.stops(0, 0, {4 * (at + 1): value for at, value in enumerate(values)}) is stops
    assert not Patience(grace=99, evaluations=3, min_delta=0.1).stops(0, 0, {4 * (at + 1): value for at, value in enumerate(values)})


def test_each_seed_passes_each_rung_and_the_latest_mean_is_the_bar() -> None:
    judge = Halving([4], 2)
    assert not judge.stops(0, 0, {4: 0.8})
    assert not judge.stops(0, 1, {4: 0.5})  # two seeds of trial 0: its mean fell, and it is not compared with itself
    assert not judge.stops(1, 0, {4: 0.6})  # above 0.5, though not above the 0.8 that one seed had
    assert judge.stops(1, 1, {4: 0.4})


def test_a_new_seed_does_not_take_its_trial_from_the_median_rules_view() -> None:
    judge = Median(1)
    for trial in range(3):
        assert not judge.stops(trial, 0, {4: 0.5, 8: 0.5})
    assert not judge.stops(0, 1, {4: 0.5})  # begins its second seed
    assert judge.stops(3, 0, {4: 0.1, 8: 0.1})
