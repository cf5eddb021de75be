"""The first trials of a search, spread by a replay: planned from the study and a baseline's records alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from fat_ray import rules
from fat_ray.spec.study import StudySpec, as_json, num_trials
from fat_ray.study import warm_start
from fat_ray.study.journal import Journal
from fat_ray.study.ledger import Ledger, Trial
from fat_ray.study.search import StudySearch
from fat_ray.study.warm_start import WarmStart, candidate_settings
from tests.support.recordings import STEPS, write_drift_run
from tests.support.small_studies import write_run

pytestmark = [pytest.mark.timeout(20), pytest.mark.cpu_limit(5)]

OBSERVED = {"name": "observed", "policy": "none", "set": {"fisher.record": "always", "fisher.every": 2}}
SECTIONS: dict[str, Any] = {
    "train": {"steps": STEPS, "evaluate_every": 2},
    "fisher": {"every": 2},
    "freeze": {"every": 2, "warmup_steps": 0, "floor": 0.0},
    "search": {
        "warm_start": "replay",
        "freeze.threshold": {"type": "float", "low": -4.0, "high": 3.0},
        "freeze.every": {"type": "int", "low": 2, "high": 6, "step": 2},
        "train.optimizer.lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
    },
    "sampler": {"startup_trials": 4},
    "baselines": [OBSERVED],
    "budget": {"trials": 6},
}


def study(**sections: Any) -> StudySpec:
    return StudySpec.model_validate({"name": "drifting", **SECTIONS, **sections})


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "CANDIDATES", 100)


def observe(directory: Path, seed: int = 0) -> None:
    """Records of the baseline: groups that settle at different speeds."""
    distance = np.random.default_rng(seed).gamma(2.0, size=(6, 8)) * np.linspace(0.1, 1, 8)
    distance[0] = np.nan
    write_drift_run(directory, f"observed-s{seed}", distance, freeze={"policy": "none"}, fisher={"every": 2, "record": "always"})


def driver(spec: StudySpec, directory: Path, concurrency: int = 1) -> tuple[StudySearch, Ledger]:
    ledger = Ledger(num_trials(as_json(spec)))
    return StudySearch(spec, directory, ledger, concurrency=concurrency, executor="stock"), ledger


def run_all(spec: StudySpec, directory: Path, upto: int = 99) -> list[Trial]:
    """Plays Ray Tune; the baseline has run already."""
    search, ledger = driver(spec, directory)
    for number in range(upto):
        if not isinstance(search.suggest(f"id{number}"), dict):
            break
        trial = ledger.of(f"id{number}")
        for job in trial.jobs:
            write_run(job, mean_active=50.0, steps=1)
        search.on_trial_complete(f"id{number}", {})
    return [trial for trial in ledger.trials if not trial.is_baseline]


def test_the_first_trials_are_spread_over_what_is_foretold(tmp_path: Path) -> None:
    observe(tmp_path)
    trials = run_all(study(), tmp_path)
    told = Journal(study(), tmp_path).trials
    assert [trial.params for trial in trials] == [trial.params for trial in told]
    foretold = [trial.user_attrs.get("foretold_mean_active_fraction") for trial in told]
    assert foretold[4:] == [None, None]
    first = np.array(foretold[:4], float)
    assert (np.diff(first) > 0.05).all()
    assert 0.2 < first[0] < first[-1] < 0.99
    assert all(trial.state is TrialState.COMPLETE for trial in told)
    assert len({trial.params["train.optimizer.lr"] for trial in told}) == 6


def test_a_study_that_is_gone_on_with_begins_as_it_would_have(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        observe(tmp_path / name)
    whole = run_all(study(), tmp_path / "whole")
    run_all(study(), tmp_path / "parts", upto=2)
    parts = run_all(study(), tmp_path / "parts")
    assert [trial.params for trial in parts] == [trial.params for trial in whole]


def test_what_a_killed_driver_was_about_to_ask_for_is_asked_for_once(tmp_path: Path) -> None:
    observe(tmp_path)
    journal = Journal(study(), tmp_path)
    journal._study.enqueue_trial(dict(WarmStart(study(), tmp_path).setting(0).params))  # killed here
    assert journal.trials == []
    trials = run_all(study(), tmp_path)
    assert [trial.number for trial in trials] == list(range(6))
    planned = [WarmStart(study(), tmp_path).setting(number).params for number in range(4)]
    assert [trial.params for trial in trials[:4]] == planned


def test_the_plan_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    observe(tmp_path)
    specs = [study(sampler={"seed": seed, "startup_trials": 3}) for seed in (0, 0, 1)]
    plans = [[WarmStart(spec, tmp_path).setting(number) for number in range(4)] for spec in specs]
    assert plans[0] == plans[1] != plans[2]
    assert [start is None for start in plans[0]] == [False, False, False, True]


def test_the_search_waits_until_the_baseline_has_recorded_its_drift(tmp_path: Path) -> None:
    search, ledger = driver(study(), tmp_path, concurrency=4)
    assert isinstance(search.suggest("baseline"), dict)
    assert search.suggest("too early") is None
    (trial,) = ledger.trials
    observe(tmp_path)
    search.on_trial_complete("baseline", {})
    assert trial.status is not None
    assert isinstance(search.suggest("first"), dict)
    assert "foretold_mean_active_fraction" in Journal(study(), tmp_path).trials[0].user_attrs


def test_without_recorded_drift_the_search_begins_at_random_and_says_so(tmp_path: Path) -> None:
    search, ledger = driver(study(), tmp_path)
    search.suggest("baseline")
    search.on_trial_complete("baseline", {"failure": "no memory"})
    assert isinstance(search.suggest("first"), dict)
    assert "search.warm_start = replay has nothing to replay" in ledger.notes[0]
    assert "foretold_mean_active_fraction" not in Journal(study(), tmp_path).trials[0].user_attrs


def test_seeds_are_averaged_and_generations_filled(tmp_path: Path) -> None:
    spec = study(seeds=[0, 1], sampler={"name": "nsga2", "population": 5})
    observe(tmp_path)
    alone = WarmStart(spec, tmp_path).setting(2)
    observe(tmp_path, seed=1)
    both = WarmStart(spec, tmp_path)
    assert both.setting(2) != alone
    assert [both.setting(number) is None for number in (4, 5)] == [False, True]
    told = run_all(spec, tmp_path)
    assert [trial.params for trial in told[:5]] == [both.setting(number).params for number in range(5)]


def test_candidates_stay_within_the_space_and_the_policy() -> None:
    search = {
        "warm_start": "replay",
        "freeze.policy": {"type": "categorical", "choices": ["none", "fisher_drift"]},
        "freeze.threshold": {"type": "float", "low": -1.0, "high": 0.0, "step": 0.25, "when": "freeze.policy == fisher_drift"},
        "freeze.every": {"type": "int", "low": 2, "high": 64, "log": True},
        "drift.centre": {"type": "categorical", "choices": ["median", "none"]},
        "drift.distance": {"type": "categorical", "choices": ["raw", "log"]},
    }
    found = candidate_settings(study(search=search))
    assert {params["freeze.policy"] for params in found} == {"fisher_drift"}
    assert {params["freeze.threshold"] for params in found} == {-1.0, -0.75, -0.5, -0.25, 0.0}
    every = [params["freeze.every"] for params in found]
    assert min(every) == 2
    assert 32 < max(every) <= 64
    assert np.median(every) < 20
    assert ("median", "raw") not in {(params["drift.centre"], params["drift.distance"]) for params in found}


def test_places_are_spread_over_the_range_and_none_is_taken_twice() -> None:
    values = np.array([0.0] * 50 + [0.4, 0.62, 0.35] + [1.0] * 50)
    assert [values[place] for place in rules.spread(values, 3)] == [0.0, 0.4, 1.0]
    assert sorted(rules.spread(np.ones(4), 4)) == [0, 1, 2, 3]
    assert len(rules.spread(np.ones(3), 5)) == 3
