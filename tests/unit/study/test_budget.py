"""What ends a study early, and what becomes of its running trials."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fat_ray.events import Status
from fat_ray.spec.study import BudgetSpec
from fat_ray.study.callbacks import Supervisor, used_up
from fat_ray.study.ledger import Close, Cost, Ledger
from fat_ray.train.stop import stop_requested
from tests.support.small_studies import small_study, write_run
from tests.unit.study.test_search import Driver

pytestmark = pytest.mark.cpu_limit(10)  # imports Ray Tune


@pytest.mark.parametrize(
    ("budget", "close"),
    [
        ({}, None),
        ({"hours": 1.0}, None),
        ({"hours": 0.1}, Close.OUT_OF_TIME),
        ({"worker_s": 11.0}, None),
        ({"worker_s": 10.0}, Close.OUT_OF_WORK),
        ({"flops": 101.0}, None),
        ({"flops": 100.0}, Close.OUT_OF_FLOPS),
        ({"hours": 1.0, "flops": 1.0, "worker_s": 100.0}, Close.OUT_OF_FLOPS),
    ],
)
def test_a_budget_is_used_up_when_all_runs_together_have_used_it(tmp_path: Path, budget: dict[str, Any], close: Close | None) -> None:
    driver = Driver(small_study(seeds=[0, 1], budget={"trials": 3}), tmp_path, concurrency=2)
    baseline, trial = driver.start(), driver.start()
    baseline.spent = {"none-s0": Cost(3.0, 40.0), "none-s1": Cost(3.0, 40.0)}
    trial.note({"step": 2, "worker_s": 3.0, "flops": 15.0, "position": 0})
    trial.note({"step": 4, "worker_s": 4.0, "flops": 20.0, "position": 0})
    driver.ledger.started_s = 0.0
    assert used_up(BudgetSpec.model_validate(budget), driver.ledger, now_s=1000.0) is close


def test_records_correct_what_evaluations_said_that_a_run_has_used(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[]), tmp_path)
    trial = driver.start()
    driver.search.on_trial_result(driver.id, {"step": 4, "worker_s": 2.0, "flops": 40.0})
    assert driver.ledger.spent == Cost(2.0, 40.0)
    driver.finish(trial)
    assert driver.ledger.spent == Cost(6.0, 80.0)


def test_running_trials_are_stopped_when_a_budget_is_used_up_and_told_as_no_result(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=["random_matched"], budget={"trials": 3, "flops": 50.0}), tmp_path)
    trial = driver.start()
    supervisor = Supervisor(driver.ledger, tmp_path, driver.spec.budget)
    supervisor.on_step_begin(0, [])
    assert stop_requested(tmp_path, "t0000-s0") is None
    driver.search.on_trial_result(driver.id, {"step": 6, "val/f1": 0.9, "flops": 60.0})
    supervisor.on_step_begin(1, [])
    assert stop_requested(tmp_path, "t0000-s0") is Status.STOPPED
    write_run(trial.jobs[0], Status.STOPPED, steps=6, reason="stopped on request after 6 of 8 steps")
    driver.search.on_trial_complete(driver.id, {})
    assert driver.suggest()[1] == Searcher.FINISHED
    assert (driver.ledger.close, trial.status) == (Close.OUT_OF_FLOPS, Status.STOPPED)
    assert driver.ledger.notes == ["budget of floating point operations used up: running trials were stopped, and the rest was left out"]
    [told] = driver.journal()
    assert (told.state, told.values) == (TrialState.FAIL, None)
    assert told.user_attrs["reason"] == "stopped: stopped on request after 6 of 8 steps"


def test_what_an_earlier_driver_spent_counts(tmp_path: Path) -> None:
    spec = small_study(baselines=["none"], budget={"trials": 3})
    first = Driver(spec, tmp_path)
    first.finish(first.start())
    first.finish(first.start())
    assert Ledger(0).spent == Cost()
    again = Driver(spec, tmp_path)
    assert again.start().name == "t0001"
    assert again.ledger.spent == Cost(12.0, 160.0)


def test_what_all_seeds_of_a_trial_use_counts_and_none_of_them_starts_after_the_end(tmp_path: Path) -> None:
    driver = Driver(small_study(seeds=[0, 1, 2], baselines=[], budget={"trials": 3, "worker_s": 14.0}), tmp_path)
    trial = driver.start()
    supervisor = Supervisor(driver.ledger, tmp_path, driver.spec.budget)
    driver.search.on_trial_result(driver.id, {"step": 8, "val/f1": 0.9, "worker_s": 6.0, "position": 0})
    driver.search.on_trial_result(driver.id, {"seeds_done": 1})
    driver.search.on_trial_result(driver.id, {"step": 8, "val/f1": 0.8, "worker_s": 7.0, "position": 1})
    supervisor.on_step_begin(0, [])
    assert driver.ledger.spent.worker_s == 13.0
    assert driver.ledger.close is None
    driver.search.on_trial_result(driver.id, {"seeds_done": 2})
    driver.search.on_trial_result(driver.id, {"step": 2, "val/f1": 0.1, "worker_s": 1.0, "position": 2})
    supervisor.on_step_begin(1, [])
    assert driver.ledger.close is Close.OUT_OF_WORK
    assert [stop_requested(tmp_path, f"t0000-s{seed}") for seed in (0, 1, 2)] == [Status.STOPPED] * 3
    for job in trial.jobs[:2]:
        write_run(job)
    write_run(trial.jobs[2], Status.STOPPED, steps=2)
    driver.search.on_trial_complete(driver.id, {})
    [told] = driver.journal()
    assert (trial.status, told.state, told.values) == (Status.STOPPED, TrialState.FAIL, None)  # two seeds of three are no result
    assert driver.suggest()[1] == Searcher.FINISHED


def test_the_budget_of_trials_counts_settings_not_seeds(tmp_path: Path) -> None:
    driver = Driver(small_study(seeds=[0, 1, 2], baselines=[], budget={"trials": 2}), tmp_path)
    names = []
    for _ in range(2):
        trial = driver.start()
        names.append(trial.name)
        driver.finish(trial)
    assert names == ["t0000", "t0001"]
    assert driver.suggest()[1] == Searcher.FINISHED
    assert len(driver.journal()) == 2


def test_patience_counts_settings_whose_mean_over_the_seeds_brings_nothing(tmp_path: Path) -> None:
    driver = Driver(small_study(seeds=[0, 1], baselines=[], budget={"trials": 9, "patience_trials": 2}), tmp_path)
    for f1 in (0.9, 0.5, 0.4):  # the second and the third are beaten by the first
        driver.finish(driver.start(), final={"f1": f1, "loss": 1.0})
    assert driver.suggest()[1] == Searcher.FINISHED
    assert driver.ledger.notes == ["the search ended 6 trials early: for 2 trials its front had not grown (budget.patience_trials)"]
