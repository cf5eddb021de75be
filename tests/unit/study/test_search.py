"""The search without Ray: trials are asked for and concluded by hand, from records written here."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from ray import cloudpickle
from ray.tune.search import Searcher

from fat_ray.engine.vault import checkpoint_path
from fat_ray.events import Status
from fat_ray.records.reader import run_end, run_start, runs
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import StudySpec, as_json, num_trials
from fat_ray.study.journal import JOURNAL
from fat_ray.study.ledger import Close, Ledger, Trial
from fat_ray.study.room import Closing
from fat_ray.study.schedule import CooperativeScheduler
from fat_ray.study.search import StudySearch
from fat_ray.train.stop import stop_requested
from tests.support.small_studies import small_study, write_run

pytestmark = pytest.mark.timeout(10)  # records are synced to disk, which a busy machine does slowly

SINGLE = [{"metric": "val/f1", "direction": "maximize"}]


class Driver:
    """Plays Ray Tune."""

    def __init__(self, spec: StudySpec, directory: Path, concurrency: int = 1) -> None:
        self.spec, self.directory = spec, directory
        self.ledger = Ledger(num_trials(as_json(spec)))
        directory.mkdir(parents=True, exist_ok=True)
        self.search = StudySearch(spec, directory, self.ledger, concurrency=concurrency, executor="stock")
        self._count = 0

    def suggest(self) -> tuple[str, Any]:
        self._count += 1
        trial_id = f"id{self._count}"
        return trial_id, self.search.suggest(trial_id)

    def start(self) -> Trial:
        self.id, config = self.suggest()
        assert isinstance(config, dict), config
        trial = self.ledger.of(self.id)
        assert [RunJob.model_validate_json(text) for text in config["jobs"]] == trial.jobs
        return trial

    def finish(self, trial: Trial, status: Status = Status.COMPLETED, **record: Any) -> None:
        for job in trial.jobs:
            write_run(job, status, **record)
        self.search.on_trial_complete(self.id, {})

    def run_all(self, f1: Any = lambda trial: 0.5) -> list[Trial]:
        trials = []
        while isinstance((suggested := self.suggest())[1], dict):
            self.id = suggested[0]
            trials.append(trial := self.ledger.of(self.id))
            self.finish(trial, final={"f1": f1(trial)}, schedule=[(4, 80), (6, 60)], steps=1)
        assert suggested[1] == Searcher.FINISHED
        return trials

    def journal(self) -> list[FrozenTrial]:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(self.directory / JOURNAL)))
        return optuna.load_study(study_name=self.spec.name, storage=storage).trials


def test_baselines_frame_the_search(tmp_path: Path) -> None:
    driver = Driver(small_study(seeds=[0, 7]), tmp_path)
    trials = driver.run_all()
    assert [trial.name for trial in trials] == ["none", "t0000", "t0001", "t0002", "random_matched"]
    assert [job.run for job in trials[1].jobs] == ["t0000-s0", "t0000-s7"]
    assert (trials[0].jobs[0].role, trials[0].jobs[0].label, trials[0].jobs[0].spec.freeze.policy) == ("baseline", "none", "none")
    assert (trials[1].jobs[0].role, trials[1].jobs[0].trial, trials[1].jobs[0].label) == ("search", 0, "")
    assert trials[1].jobs[0].spec.freeze.threshold == trials[1].params["freeze.threshold"]
    assert all(trial.status is Status.COMPLETED for trial in trials)


def test_the_matched_baseline_follows_the_best_fisher_drift_trial_seed_by_seed(tmp_path: Path) -> None:
    driver = Driver(small_study(seeds=[0, 7]), tmp_path)
    trials = driver.run_all(f1=lambda trial: {"none": 0.99, "t0000": 0.3, "t0001": 0.8, "t0002": 0.5}.get(trial.name, 0.4))
    leader, matched = trials[2], trials[-1]
    assert matched.name == "random_matched"
    assert matched.params == leader.params
    for job, followed in zip(matched.jobs, leader.jobs, strict=True):
        assert job.follow == [(4, 80), (6, 60)]
        assert job.spec.freeze.policy == "random_matched"
        assert job.spec.freeze.threshold == followed.spec.freeze.threshold
        assert job.seed == followed.seed


def test_the_matched_baseline_waits_for_the_whole_search(tmp_path: Path) -> None:
    driver = Driver(small_study(budget={"trials": 1}), tmp_path, concurrency=4)
    none, first = driver.start(), driver.start()
    assert driver.suggest()[1] is None
    driver.finish(first)
    assert driver.start().name == "random_matched"
    assert none.status is None


def test_without_a_finished_leader_the_matched_baseline_is_skipped_with_a_note(tmp_path: Path) -> None:
    driver = Driver(small_study(budget={"trials": 1}, baselines=["random_matched"]), tmp_path)
    driver.finish(driver.start(), Status.DIVERGED, reason="loss became NaN")
    assert driver.suggest()[1] == Searcher.FINISHED
    assert "random_matched was skipped" in driver.ledger.notes[0]


def test_no_more_trials_run_than_planned(tmp_path: Path) -> None:
    driver = Driver(small_study(), tmp_path, concurrency=2)
    driver.start()
    second = driver.start()
    assert driver.suggest()[1] is None
    driver.finish(second)
    assert driver.start().name == "t0001"


def test_objectives_are_means_over_seeds(tmp_path: Path) -> None:
    driver = Driver(small_study(seeds=[0, 1], baselines=[], budget={"trials": 1}), tmp_path)
    trial = driver.start()
    write_run(trial.jobs[0], final={"f1": 0.4}, mean_active=20.0)
    write_run(trial.jobs[1], final={"f1": 0.8}, mean_active=40.0)
    driver.search.on_trial_complete(driver.id, {})
    [told] = driver.journal()
    assert told.state is TrialState.COMPLETE
    assert told.values == pytest.approx([0.6, 30.0])
    assert told.user_attrs["runs"] == ["t0000-s0", "t0000-s1"]
    assert told.user_attrs["seed_values"] == {"val/f1": [0.4, 0.8], "mean_active": [20.0, 40.0]}
    assert told.user_attrs["seed_std"] == pytest.approx({"val/f1": 0.4 / 2**0.5, "mean_active": 20 / 2**0.5})


def test_a_pruned_trial_never_enters_the_front(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[], budget={"trials": 2}), tmp_path)
    driver.finish(driver.start(), final={"f1": 0.5}, mean_active=50.0)
    driver.finish(driver.start(), Status.PRUNED, final={"f1": 0.9}, mean_active=1.0)
    assert [trial.state for trial in driver.journal()] == [TrialState.COMPLETE, TrialState.PRUNED]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    assert [trial.number for trial in optuna.load_study(study_name="small", storage=storage).best_trials] == [0]


def test_with_one_objective_the_search_learns_from_pruned_trials(tmp_path: Path) -> None:
    driver = Driver(small_study(objectives=SINGLE, baselines=[], budget={"trials": 1}), tmp_path)
    trial = driver.start()
    driver.search.on_trial_result(driver.id, {"step": 2, "val/f1": 0.3})
    driver.search.on_trial_result(driver.id, {"step": 4, "val/f1": math.nan})
    driver.finish(trial, Status.PRUNED)
    [told] = driver.journal()
    assert (told.state, told.intermediate_values) == (TrialState.PRUNED, {2: 0.3})


@pytest.mark.parametrize(
    ("status", "final", "state", "reason"),
    [
        (Status.DIVERGED, {"f1": 0.5}, Status.DIVERGED, "diverged: loss became NaN at step 3"),
        (Status.FAILED, {"f1": 0.5}, Status.FAILED, "failed: loss became NaN at step 3"),
        (Status.STOPPED, {"f1": 0.5}, Status.STOPPED, "stopped: loss became NaN at step 3"),
        (Status.COMPLETED, {"f1": math.nan}, Status.FAILED, "objective val/f1 is nan"),
        (Status.COMPLETED, {"f1": math.inf}, Status.FAILED, "objective val/f1 is inf"),
        (Status.COMPLETED, {"iou": 0.5}, Status.FAILED, "objective val/f1 was not reported; the task reports val/iou"),
    ],
)
def test_what_did_not_complete_fails_in_optuna_with_its_reason(
    tmp_path: Path, status: Status, final: dict[str, float], state: Status, reason: str
) -> None:
    driver = Driver(small_study(baselines=[]), tmp_path)
    trial = driver.start()
    driver.finish(trial, status, final=final, reason="" if status is Status.COMPLETED else "loss became NaN at step 3")
    [told] = driver.journal()
    assert (told.state, told.values, trial.status) == (TrialState.FAIL, None, state)
    assert told.user_attrs["reason"] == reason
    assert driver.start().name == "t0001"


def test_a_trial_whose_process_told_a_failure_has_it_as_reason(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[]), tmp_path)
    trial = driver.start()
    driver.search.on_trial_complete(driver.id, {"failure": "worker 1: KeyError: 'x'"})
    assert (trial.status, trial.reason) == (Status.FAILED, "worker 1: KeyError: 'x'")
    assert driver.journal()[0].user_attrs["reason"] == "failed: worker 1: KeyError: 'x'"
    end, start = run_end(tmp_path, "t0000-s0"), run_start(tmp_path, "t0000-s0")
    assert end is not None
    assert (end.status, end.reason, end.steps, end.mean_active_fraction) == (Status.FAILED, "worker 1: KeyError: 'x'", 0, 0.0)
    assert (start.trial, start.params, start.groups) == (0, trial.params, [])
    assert start.spec == trial.jobs[0].spec.model_dump(mode="json")


def test_a_trial_that_died_without_a_word_fails_and_its_record_gets_an_end(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[]), tmp_path)
    trial = driver.start()
    write_run(trial.jobs[0], None, steps=5)
    driver.search.on_trial_complete(driver.id, error=True)
    end = run_end(tmp_path, "t0000-s0")
    assert end is not None
    assert (end.status, end.steps, end.updates, end.flops, end.train_s) == (Status.FAILED, 5, 500, 50.0, 1.25)
    assert (end.mean_active, end.mean_active_fraction) == (100.0, 1.0)
    assert (end.comm_bytes, end.optimizer_bytes, end.peak_memory_bytes) == (35, 4000, 50_000_000)
    assert trial.reason == end.reason == "its trial process died"
    assert run_start(tmp_path, "t0000-s0").total_elements == 100


def test_later_seeds_of_a_trial_that_ended_early_are_not_looked_for(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[], seeds=[0, 1]), tmp_path)
    trial = driver.start()
    driver.search.on_trial_result(driver.id, {"step": 2, "val/f1": 0.3})
    assert (trial.step, trial.last("val/f1")) == (2, 0.3)
    write_run(trial.jobs[0], Status.PRUNED, steps=3)
    driver.search.on_trial_result(driver.id, {"seeds_done": 1})
    driver.search.on_trial_complete(driver.id, {})
    assert trial.step == 3
    assert (trial.status, trial.ends) == (Status.PRUNED, {"t0000-s0": Status.PRUNED})


def test_a_study_out_of_budget_starts_nothing_and_leaves_no_trial_running(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[]), tmp_path)
    trial = driver.start()
    driver.ledger.close = Close.OUT_OF_FLOPS
    assert driver.suggest()[1] == Searcher.FINISHED
    driver.search.close()
    assert (trial.status, trial.reason) == (Status.STOPPED, "stopped before it began")
    assert [told.state for told in driver.journal()] == [TrialState.FAIL]
    driver.search.on_trial_complete(driver.id, {})
    assert trial.status is Status.STOPPED
    end = run_end(tmp_path, "t0000-s0")
    assert end is not None
    assert (end.status, end.reason, end.steps) == (Status.STOPPED, "stopped before it began", 0)


@pytest.mark.parametrize(
    ("failure", "close"),
    [
        (None, Close.INTERRUPTED),
        ("worker 0: the process died or was killed", Close.INTERRUPTED),
        ("OSError: [Errno 28] No space left on device", Close.OUT_OF_DISK),
    ],
)
def test_what_an_interruption_or_a_full_disk_stops_goes_on_later(tmp_path: Path, failure: str | None, close: Close) -> None:
    spec = small_study(baselines=["none"], seeds=[0, 1])
    driver = Driver(spec, tmp_path, concurrency=2)
    none, first = driver.start(), driver.start()
    write_run(none.jobs[0], Status.STOPPED, reason="stopped on request after 3 of 8 steps", steps=3)
    driver.ledger.close = close
    driver.search.on_trial_complete("id1", {} if failure is None else {"failure": failure})
    driver.search.close()
    assert driver.suggest()[1] == Searcher.FINISHED
    assert [none.status, first.status] == [Status.STOPPED, Status.STOPPED]
    assert [told.state for told in driver.journal()] == [TrialState.RUNNING]
    assert runs(tmp_path) == ["none-s0"]  # what had not begun has no record

    after = Driver(spec, tmp_path)
    assert not after.search.is_complete
    trials = after.run_all()
    assert [trial.name for trial in trials] == ["none", "t0000", "t0001", "t0002"]
    assert trials[1].params == first.params
    assert [told.state for told in after.journal()] == [TrialState.COMPLETE] * 3
    assert Driver(spec, tmp_path).search.is_complete


def test_with_nothing_to_search_the_base_setting_is_run_once(tmp_path: Path) -> None:
    trials = Driver(small_study(search={}, baselines=["none"]), tmp_path).run_all()
    assert [(trial.name, trial.params) for trial in trials] == [("none", {}), ("t0000", {})]


def statistics(noise: list[str], compare: list[str]) -> dict[str, Any]:
    return {
        "drift.noise": {"type": "categorical", "choices": noise},
        "drift.compare": {"type": "categorical", "choices": compare},
    }


def test_a_suggestion_that_does_not_go_together_fails_in_optuna_and_the_search_goes_on(tmp_path: Path) -> None:
    spec = small_study(search=statistics(["none", "swap"], ["previous", "average"]), budget={"trials": 12}, baselines=[])
    driver = Driver(spec, tmp_path)
    trials = driver.run_all()
    journal = driver.journal()
    invalid = [told.params == {"drift.noise": "swap", "drift.compare": "average"} for told in journal]
    assert len(journal) == 12
    assert 0 < sum(invalid) < 12
    assert [told.state is TrialState.FAIL for told in journal] == invalid
    assert all(("drift.noise = swap" in told.user_attrs.get("reason", "")) is bad for told, bad in zip(journal, invalid, strict=True))
    assert [trial.number for trial in trials] == [told.number for told, bad in zip(journal, invalid, strict=True) if not bad]
    assert driver.ledger.total == len(trials)
    [note] = driver.ledger.notes
    assert "drift.noise = swap, drift.compare = average" in note


def test_a_space_without_any_valid_setting_ends_the_search_with_a_note(tmp_path: Path) -> None:
    driver = Driver(small_study(search=statistics(["swap"], ["average"]), baselines=["none"]), tmp_path)
    assert [trial.name for trial in driver.run_all()] == ["none"]
    assert [told.state for told in driver.journal()] == [TrialState.FAIL] * 3
    assert len(driver.ledger.notes) == 1
    assert "all 3 suggested settings" in driver.ledger.failure


def test_baselines_of_ones_own_run_first_and_matched_ones_last(tmp_path: Path) -> None:
    baselines = [
        {"name": "control", "policy": "random_matched", "set": {"freeze.follow": "t0001-s0"}},
        "none",
        {"name": "half", "set": {"freeze.floor": 0.5}},
        "random_matched",
    ]
    trials = Driver(small_study(baselines=baselines), tmp_path).run_all(f1=lambda trial: 0.9 if trial.name == "t0002" else 0.5)
    assert [trial.name for trial in trials] == ["none", "half", "t0000", "t0001", "t0002", "control", "random_matched"]
    half, control, matched = trials[1].jobs[0], trials[5], trials[6]
    assert (half.run, half.role, half.label) == ("half-s0", "baseline", "half")
    assert half.spec == small_study(freeze={"floor": 0.5}).run
    assert (half.params, trials[1].params) == ({}, {"freeze.floor": 0.5})  # nothing was searched; the console shows what it sets
    assert (control.params, matched.params) == (trials[3].params, trials[4].params)
    assert {control.jobs[0].spec.freeze.policy, matched.jobs[0].spec.freeze.policy} == {"random_matched"}


def test_a_named_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=["random_matched"], freeze={"follow": "t0009-s0"}), tmp_path)
    assert "random_matched" not in [trial.name for trial in driver.run_all()]
    assert "no run t0009-s0 of this study with policy fisher_drift completed" in driver.ledger.notes[0]


def test_a_driver_that_was_killed_leaves_no_zombie_and_the_next_one_goes_on(tmp_path: Path) -> None:
    spec = small_study(budget={"trials": 5})
    whole = [trial.params for trial in Driver(spec, tmp_path / "whole").run_all()][1:-1]

    killed = Driver(spec, tmp_path / "cut", concurrency=4)
    killed.finish(killed.start())  # the baseline
    killed.finish(killed.start(), final={"f1": 0.7}, schedule=[(4, 80)], steps=1)
    unheard, mid_run, asked = killed.start(), killed.start(), killed.start()
    for job in unheard.jobs:  # ended, but the driver was killed before it knew
        write_run(job, final={"f1": 0.5}, schedule=[(4, 80)], steps=1)
    write_run(mid_run.jobs[0], None, steps=3)

    after = Driver(spec, tmp_path / "cut")
    assert [trial.name for trial in after.ledger.trials] == ["none", "t0000", "t0001", "t0002", "t0003"]
    assert [told.state for told in after.journal()] == [TrialState.COMPLETE, *[TrialState.RUNNING] * 3]
    assert after.start().params == mid_run.params
    assert [told.state for told in after.journal()][:3] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]
    assert after.journal()[1].values == [0.5, 50.0]
    assert after.suggest()[1] is None  # one at a time
    after.finish(after.ledger.trials[3])
    trials = after.run_all()
    assert [trial.name for trial in trials] == ["t0003", "t0004", "random_matched"]
    assert trials[0].params == asked.params
    assert trials[-1].params == killed.ledger.trials[1].params  # the best so far is one of the first driver's
    assert [told.params for told in after.journal()][:3] == whole[:3]
    assert {told.state for told in after.journal()} == {TrialState.COMPLETE}
    assert Driver(spec, tmp_path / "cut").run_all() == []


@pytest.mark.parametrize(
    ("status", "goes_on", "state"),
    [
        (None, True, TrialState.RUNNING),
        (Status.STOPPED, True, TrialState.RUNNING),
        (Status.FAILED, True, TrialState.RUNNING),  # perhaps a consequence of the kill
        (Status.COMPLETED, False, TrialState.COMPLETE),
        (Status.PRUNED, False, TrialState.PRUNED),
        (Status.DIVERGED, False, TrialState.FAIL),
    ],
)
def test_what_the_driver_had_not_told_ends_as_its_records_say_or_goes_on(
    tmp_path: Path, status: Status | None, goes_on: bool, state: TrialState
) -> None:
    spec = small_study(baselines=["none"], budget={"trials": 2})
    killed = Driver(spec, tmp_path, concurrency=2)
    for trial in (killed.start(), killed.start()):
        write_run(trial.jobs[0], status, reason="why", steps=3)
    after = Driver(spec, tmp_path, concurrency=4)
    assert not after.search.is_complete
    started = [after.start().name for _ in range(3 if goes_on else 1)]
    assert started == (["none", "t0000", "t0001"] if goes_on else ["t0001"])
    assert after.journal()[0].state is state


def test_what_was_told_as_failed_stays_so(tmp_path: Path) -> None:
    spec = small_study(baselines=["none"], budget={"trials": 1})
    driver = Driver(spec, tmp_path)
    for _ in range(2):
        driver.finish(driver.start(), Status.FAILED, reason="KeyError: 'x'")
    after = Driver(spec, tmp_path)
    assert after.search.is_complete
    assert after.suggest()[1] == Searcher.FINISHED
    assert [(trial.name, trial.status, trial.reason) for trial in after.ledger.trials] == [
        ("none", Status.FAILED, "KeyError: 'x'"),
        ("t0000", Status.FAILED, "KeyError: 'x'"),
    ]


def test_a_trial_goes_on_with_the_seed_at_which_it_was(tmp_path: Path) -> None:
    spec = small_study(objectives=SINGLE, baselines=[], seeds=[0, 1, 2], budget={"trials": 1})
    killed = Driver(spec, tmp_path)
    trial = killed.start()
    write_run(trial.jobs[0], final={"f1": 0.4}, steps=8)
    write_run(trial.jobs[1], None, final={"f1": 0.9}, steps=4)  # evaluated at step 4, but no checkpoint holds that
    after = Driver(spec, tmp_path)
    trial_id, config = after.suggest()
    again = after.ledger.of(trial_id)
    assert (config["done"], again.seeds_done, again.number) == (1, 1, 0)
    assert [job.resume for job in again.jobs] == [True] * 3
    assert again.evaluations == [{8: {"val/f1": 0.4}}]
    assert after.journal()[0].intermediate_values == {8: 0.4}  # the first driver was killed before it reported that
    assert again.spent["t0000-s0"].worker_s == 6.0


def test_a_matched_baseline_goes_on_after_its_leader(tmp_path: Path) -> None:
    spec = small_study(budget={"trials": 2}, baselines=["random_matched"], seeds=[0, 1])
    killed = Driver(spec, tmp_path)
    for f1 in (0.4, 0.8):
        killed.finish(killed.start(), final={"f1": f1}, schedule=[(4, 80)], steps=1)
    matched = killed.start()
    write_run(matched.jobs[0], steps=1)
    write_run(matched.jobs[1], None, steps=1)
    after = Driver(spec, tmp_path)
    trial_id, config = after.suggest()
    again = after.ledger.of(trial_id)
    assert (config["done"], again.params, again.jobs[1].follow) == (1, matched.params, [(4, 80)])
    after.id = trial_id
    write_run(again.jobs[1], steps=1)
    after.search.on_trial_complete(trial_id, {})
    assert Driver(spec, tmp_path).search.is_complete


def test_a_trial_that_was_asked_to_stop_is_asked_again(tmp_path: Path) -> None:
    spec = small_study(objectives=SINGLE, baselines=[], budget={"trials": 2}, scheduler={"name": "asha", "grace_steps": 2})
    killed = Driver(spec, tmp_path)
    killed.finish(killed.start(), final={"f1": 0.9}, steps=2)
    trial = killed.start()
    write_run(trial.jobs[0], None, final={"f1": 0.1}, steps=2)
    checkpoint_path(tmp_path, "t0001-s0", 2).mkdir(parents=True)
    after = Driver(spec, tmp_path)
    CooperativeScheduler(spec.scheduler, spec.train.steps, after.ledger, tmp_path)
    assert after.start().asked_to_stop is Status.PRUNED
    assert stop_requested(tmp_path, "t0001-s0") is Status.PRUNED


def test_evaluations_after_the_one_that_condemned_a_trial_count_for_nobody(tmp_path: Path) -> None:
    spec = small_study(objectives=SINGLE, baselines=[], budget={"trials": 2}, scheduler={"name": "asha", "grace_steps": 2})
    driver = Driver(spec, tmp_path)
    scheduler = CooperativeScheduler(spec.scheduler, spec.train.steps, driver.ledger, tmp_path)
    driver.finish(driver.start(), final={"f1": 0.9}, steps=2)
    trial = driver.start()
    trial.cuts[0] = 2
    for step in (2, 4):
        driver.search.on_trial_result(driver.id, {"step": step, "val/f1": 0.1})
    assert driver.journal()[1].intermediate_values == {2: 0.1}
    assert scheduler is not None


def test_the_search_ends_when_its_front_no_longer_grows(tmp_path: Path) -> None:
    spec = small_study(objectives=SINGLE, budget={"trials": 20, "patience_trials": 3}, baselines=["none", "random_matched"])
    driver = Driver(spec, tmp_path)
    f1 = {"t0000": 0.2, "t0001": 0.5, "t0002": 0.4, "t0003": 0.5, "t0004": 0.45}
    assert [trial.name for trial in driver.run_all(f1=lambda trial: f1.get(trial.name, 0.1))] == ["none", *f1, "random_matched"]
    assert driver.ledger.total == 7
    assert "the search ended 15 trials early" in driver.ledger.notes[0]


def test_a_grid_ends_when_all_its_settings_have_run(tmp_path: Path) -> None:
    search = {
        "freeze.policy": {"type": "categorical", "choices": ["none", "fisher_drift"]},
        "freeze.threshold": {"type": "float", "low": -1.0, "high": 0.0, "step": 0.5, "when": "freeze.policy == fisher_drift"},
    }
    driver = Driver(small_study(search=search, sampler={"name": "grid"}, baselines=[], budget={"trials": 10}), tmp_path)
    assert driver.ledger.total == 4
    settings = {tuple(trial.params.items()) for trial in driver.run_all()}
    drift = {(("freeze.policy", "fisher_drift"), ("freeze.threshold", value)) for value in (-1.0, -0.5, 0.0)}
    assert settings == {(("freeze.policy", "none"),), *drift}


def test_parameters_whose_condition_does_not_hold_keep_the_base_value(tmp_path: Path) -> None:
    search = {
        "freeze.threshold": {"type": "float", "low": -1.0, "high": -0.6, "when": "freeze.policy == fisher_drift"},
        "freeze.policy": {"type": "categorical", "choices": ["none", "fisher_drift"]},
    }
    trials = Driver(small_study(search=search, baselines=[], budget={"trials": 12}), tmp_path).run_all()
    policies = {trial.params["freeze.policy"] for trial in trials}
    assert policies == {"none", "fisher_drift"}
    for trial in trials:
        threshold = trial.jobs[0].spec.freeze.threshold
        if trial.params["freeze.policy"] == "none":
            assert "freeze.threshold" not in trial.params
            assert threshold == small_study().freeze.threshold
        else:
            assert threshold == trial.params["freeze.threshold"]
            assert -1.0 <= threshold <= -0.6


def test_what_tune_pickles_into_each_snapshot_does_not_grow_with_the_study(tmp_path: Path) -> None:
    driver = Driver(small_study(baselines=[], budget={"trials": 4}), tmp_path)
    given = (driver.search, Closing(driver.ledger), driver.ledger.of)  # a name for each trial refers to all of them
    sizes = []
    for _ in range(3):
        driver.finish(driver.start(), final={"f1": 0.5})
        sizes.append([len(cloudpickle.dumps(what)) for what in given])
    assert sizes[0] == sizes[1] == sizes[2]
