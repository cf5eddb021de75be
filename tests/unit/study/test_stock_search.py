"""A trial that was stopped early: what Ray's own Optuna search makes of it, and what ours does. No cluster is needed to see it."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from fat_ray.events import Status
from tests.support.small_studies import small_study
from tests.unit.study.test_search import Driver

pytestmark = [pytest.mark.timeout(30), pytest.mark.cpu_limit(10)]  # imports Ray Tune

FULL = {"val/f1": 0.58, "mean_active": 60.0}
PARTIAL = {"val/f1": 0.15, "mean_active": 5.0}
"""After a few steps: bad, and cheap, because nothing that a trial has not trained yet costs anything."""

READ = """
import json, sys, optuna
storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(sys.argv[1]))
[study] = optuna.get_all_study_summaries(storage)
study = optuna.load_study(study_name=study.study_name, storage=storage)
trials = [[t.state.name, t.values, t.params, t.intermediate_values, t.user_attrs] for t in study.trials]
print(json.dumps([study.study_name, study.metric_names, [d.name for d in study.directions], trials]))
"""


def read_elsewhere(journal: Path) -> list[Any]:
    """What another process, such as optuna-dashboard, finds in the journal."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", READ, str(journal)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def stock(results: list[dict[str, float]]) -> optuna.Study:
    search = OptunaSearch(
        {"x": optuna.distributions.FloatDistribution(0, 1)},
        metric=list(FULL),
        mode=["max", "min"],
        sampler=optuna.samplers.RandomSampler(0),
    )
    for number, result in enumerate(results):
        assert search.suggest(str(number))
        search.on_trial_complete(str(number), result)  # Tune passes on the last result, whoever stopped the trial
    return search._ot_study


def test_the_stock_search_lets_a_stopped_trial_into_the_front() -> None:
    study = stock([FULL, PARTIAL])
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE]
    assert [trial.number for trial in study.best_trials] == [0, 1]
    assert study.trials[1].values == list(PARTIAL.values())


def test_ours_tells_it_as_pruned_and_without_values(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[], budget={"trials": 2}), tmp_path)
    driver.finish(driver.start(), final={"f1": FULL["val/f1"]}, mean_active=FULL["mean_active"])
    stopped = driver.start()
    driver.search.on_trial_result(driver.id, {"step": 2, **PARTIAL})
    driver.finish(stopped, Status.PRUNED, final={"f1": PARTIAL["val/f1"]}, mean_active=PARTIAL["mean_active"], steps=2)
    told = driver.journal()
    assert [trial.state for trial in told] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [trial.values for trial in told] == [list(FULL.values()), None]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal")))
    assert [trial.number for trial in optuna.load_study(study_name="small", storage=storage).best_trials] == [0]


def test_the_stock_search_leaves_a_zombie_after_nan_and_ours_does_not(tmp_path: Path) -> None:
    assert [trial.state for trial in stock([{**FULL, "val/f1": math.nan}]).trials] == [TrialState.RUNNING]
    driver = Driver(small_study(baselines=[]), tmp_path)
    driver.finish(driver.start(), final={"f1": math.nan})
    assert [trial.state for trial in driver.journal()] == [TrialState.FAIL]


@pytest.mark.parametrize("objectives", [[("val/f1", "maximize")], [("val/f1", "maximize"), ("mean_active", "minimize")]])
def test_another_process_reads_the_journal_and_changes_nothing(tmp_path: Path, objectives: list[tuple[str, str]]) -> None:
    metrics = [{"metric": metric, "direction": direction} for metric, direction in objectives]
    driver = Driver(small_study(objectives=metrics, seeds=[0, 1], baselines=[], budget={"trials": 3}), tmp_path)
    for status in (Status.COMPLETED, Status.PRUNED, Status.DIVERGED):
        trial = driver.start()
        driver.search.on_trial_result(driver.id, {"step": 4, "val/f1": 0.25, "position": 0})
        driver.search.on_trial_result(driver.id, {"seeds_done": 1})
        driver.search.on_trial_result(driver.id, {"step": 4, "val/f1": 0.75, "position": 1})
        driver.finish(trial, status, final={"f1": 0.5}, reason="" if status is Status.COMPLETED else "why")
    before = (tmp_path / "optuna.journal").read_bytes()
    name, names, directions, (complete, pruned, failed) = read_elsewhere(tmp_path / "optuna.journal")
    assert (name, names) == ("small", [metric for metric, _ in objectives])
    assert directions == [direction.upper() for _, direction in objectives]
    on_the_way = {"4": 0.25, "12": 0.5} if len(objectives) == 1 else {}  # 8 steps per seed; the mean over the seeds so far
    values = [0.5, 50.0][: len(objectives)]
    assert [trial[0] for trial in (complete, pruned, failed)] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [trial[1] for trial in (complete, pruned, failed)] == [values, None, None]
    assert all(-1.0 <= trial[2]["freeze.threshold"] <= 0.0 for trial in (complete, pruned, failed))
    assert [trial[3] for trial in (complete, pruned, failed)] == [on_the_way] * 3
    per_seed = {metric: [value] * 2 for (metric, _), value in zip(objectives, values, strict=True)}
    spread = {metric: 0.0 for metric, _ in objectives}
    assert complete[4] == {"runs": ["t0000-s0", "t0000-s1"], "seed_values": per_seed, "seed_std": spread}
    assert pruned[4] == {"runs": ["t0001-s0", "t0001-s1"], "reason": "why"}
    assert failed[4] == {"runs": ["t0002-s0", "t0002-s1"], "reason": "diverged: why"}
    assert (tmp_path / "optuna.journal").read_bytes() == before
