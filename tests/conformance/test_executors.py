"""What a study may rely upon, whichever way Ray Train is used."""

import time
from pathlib import Path
from typing import Any

import pytest

from fat_ray.errors import OutputError
from fat_ray.events import Status
from fat_ray.records.reader import read_table, run_end
from fat_ray.train.local import run_local
from fat_ray.train.resources import Executor
from fat_ray.train.run import fit
from tests.support.interruption import outcome as result
from tests.support.jobs import STEPS, tiny_job
from tests.support.ray_session import RaySession, Usage
from tests.support.tiny_task import ALL_RANKS
from tests.support.trials import run_trials

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600, func_only=False)]  # the fixtures train

BOUND_S = 30
"""Longest wait for Ray to notice what has been freed."""

# In this order in one trial slot. Warm: the same processes are used until `raises`, and new ones after each failure.
RUNS: dict[str, dict[str, Any]] = {
    "litters": {"seed": 5, "trouble": {"7": "litter"}, "trouble_rank": ALL_RANKS},
    "diverges": {"trouble": {"3": "nan"}, "trouble_rank": 1},
    "is_stopped": {"steps": 100_000, "slow_s": 0.01},
    "again": {"seed": 7, "batch_norm": True, "checkpoint": None},
    "raises": {"trouble": {"3": "raise"}, "trouble_rank": 1},
    "is_killed": {"trouble": {"3": "kill"}, "trouble_rank": 1},
    "cannot_begin": {"fail": "no such crack"},
    "last": {"seed": 7, "batch_norm": True, "checkpoint": None},
}
WARM_ONLY = ("litters", "cannot_begin", "last")
"""Runs that show what stock, with new processes for each, cannot get wrong; a stock run takes some 15 s to start."""

REASONS = {
    "raises": "worker 1: KeyError: 'the tiny task was told to raise'",
    "is_killed": "died or was killed",
    "cannot_begin": "no such crack",
}


class Outcome:
    """What the runs of one executor left."""

    def __init__(self, executor: str, directory: Path, reports: dict[str, list[dict[str, Any]]], before: Usage, after: Usage) -> None:
        self.executor = executor
        self.directory = directory
        self.reports = reports
        self.before, self.after = before, after

    def left(self, run: str) -> dict[str, Any]:
        return left(self.directory, run)


def left(directory: Path, run: str) -> dict[str, Any]:
    """All that a run leaves, to the bit: weights, state of the optimizer and of all random generators, drift, schedule, metrics, losses."""
    found = result(tiny_job(directory, run))
    unequal = ("run", "started_at", "environment")
    return {name: [{**row, **dict.fromkeys(unequal)} for row in rows] if isinstance(rows, list) else rows for name, rows in found.items()}


@pytest.fixture(scope="module", params=["stock", "warm"])
def outcome(request: pytest.FixtureRequest, ray_session: RaySession, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    directory = tmp_path_factory.mktemp(request.param)
    runs = [run for run in RUNS if request.param == "warm" or run not in WARM_ONLY]
    jobs = [tiny_job(directory, run, **RUNS[run]) for run in runs]
    before = ray_session.usage()
    reports = run_trials(jobs, request.param, directory, stop=["is_stopped"])
    return Outcome(request.param, directory, reports, before, settled(ray_session, before))


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `again` and `last` leave in processes that nothing ran in before, without Ray."""
    job = tiny_job(tmp_path_factory.mktemp("cold"), **RUNS["last"])
    run_local(job)
    return left(Path(job.directory), job.run)


def settled(ray_session: RaySession, wanted: Usage) -> Usage:
    """The cluster's usage once it is the wanted one, or after `BOUND_S`: Ray frees with a delay."""
    deadline = time.monotonic() + BOUND_S
    while (usage := ray_session.usage()) != wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    return usage


def test_every_evaluation_is_reported_also_the_last(outcome: Outcome) -> None:
    *evaluations, last = outcome.reports["again"]
    assert [report["step"] for report in evaluations] == [2, 4, 6, 8]
    assert "test/f1" in evaluations[-1]
    assert (last["status"], last["steps"]) == ("completed", STEPS)


def test_a_diverged_run_is_an_end_not_a_failure(outcome: Outcome) -> None:
    assert outcome.reports["diverges"][-1]["status"] == "diverged"
    end = run_end(outcome.directory, "diverges")
    assert end is not None
    assert "step 3" in end.reason


def test_a_stopped_run_leaves_at_a_step_and_writes_its_end(outcome: Outcome) -> None:
    assert outcome.reports["is_stopped"][-1]["status"] == "pruned"
    end = run_end(outcome.directory, "is_stopped")
    assert end is not None
    assert end.status is Status.PRUNED
    assert 2 <= end.steps < 100_000


def test_a_failure_has_a_reason_of_one_line_and_a_log(outcome: Outcome) -> None:
    failures = {run: reports[-1]["failure"] for run, reports in outcome.reports.items() if run in REASONS}
    assert {"raises", "is_killed"} <= failures.keys()
    for run, failure in failures.items():
        assert REASONS[run] in failure
        assert "\n" not in failure
        assert "Traceback" in (outcome.directory / "logs" / f"{run}.log").read_text()


def test_a_run_leaves_the_same_bits_whatever_ran_before_it(outcome: Outcome, cold: dict[str, Any]) -> None:
    assert len(cold["steps"]) == STEPS
    assert "model.safetensors" in cold
    assert outcome.left("again") == cold
    assert outcome.executor == "stock" or outcome.left("last") == cold


def test_processes_are_kept_by_warm_until_a_failure(outcome: Outcome) -> None:
    kept = {run: reports[-1]["kept_workers"] for run, reports in outcome.reports.items()}
    if outcome.executor == "stock":
        assert set(map(tuple, kept.values())) == {()}
        return
    assert len(kept["litters"]) == 2
    assert kept["litters"] == kept["diverges"] == kept["is_stopped"] == kept["again"]
    assert kept["raises"] == kept["is_killed"] == kept["cannot_begin"] == []
    assert not set(kept["last"]) & set(kept["again"])
    assert len({reports[-1]["trial_process"] for reports in outcome.reports.values()}) == 1


def test_nothing_leaks(outcome: Outcome) -> None:
    assert outcome.after == outcome.before


def test_nothing_is_left_in_control(outcome: Outcome) -> None:
    left = [path.name for path in (outcome.directory / "control").iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []  # a process that was killed leaves the lock, which nobody holds


def test_a_plain_driver_trains_without_tune(ray_session: RaySession, tmp_path: Path) -> None:
    before = ray_session.usage()
    reports: list[dict[str, Any]] = []
    job = tiny_job(tmp_path, workers=1)
    end = fit(job, executor="warm", report=reports.append)
    assert end.status is Status.COMPLETED
    assert [report["step"] for report in reports] == [2, 4, 6, 8]
    assert settled(ray_session, before) == before
    with pytest.raises(OutputError, match="run-s0 already"):
        fit(job)


@pytest.mark.parametrize("executor", ["stock", "warm"])
def test_a_run_that_loses_a_worker_goes_on(ray_session: RaySession, tmp_path: Path, cold: dict[str, Any], executor: Executor) -> None:
    before = ray_session.usage()
    trouble = {"3": f"freeze:{tmp_path / 'frozen'}", "5": f"kill:{tmp_path / 'killed'}"}  # as each process counts its steps
    # Slow: what is reported in the moment in which a worker is lost is in the records, but does not always arrive here.
    settings = {"trouble": trouble, "trouble_rank": 1, "retries": 2, "stall_timeout_s": 5.0, "slow_s": 0.2}
    job = tiny_job(tmp_path, **{**RUNS["last"], **settings})
    reports = run_trials([job], executor, tmp_path)[job.run]
    assert reports[-1]["status"] == "completed"
    assert [report["step"] for report in reports if "step" in report] == [2, 4, 6, 8]
    assert {**left(tmp_path, job.run), "runs": None} == {**cold, "runs": None}  # what it was told to do differs
    assert read_table(tmp_path, "resumptions", job.run)["step"].to_pylist() == [2, 6]
    assert settled(ray_session, before) == before


def test_short_warm_runs_of_one_worker_never_lose_their_last_report(ray_session: RaySession, tmp_path: Path) -> None:
    jobs = [tiny_job(tmp_path, f"t{number:04d}-s0", workers=1, steps=1, policy="none") for number in range(20)]
    reports = run_trials(jobs, "warm", tmp_path)
    assert [[report.get("step"), reports[job.run][-1]["status"]] for job in jobs for report in reports[job.run][:-1]] == [
        [1, "completed"]
    ] * 20
