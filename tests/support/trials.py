"""Runs jobs as Tune trials, one after the other, the way a study does, and tells what each of them reported."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from fat_ray.errors import RunFailedError
from fat_ray.events import Status
from fat_ray.spec.job import RunJob
from fat_ray.train.resources import Executor, trial_resources
from fat_ray.train.run import fit
from fat_ray.train.stop import request_stop

Report = dict[str, Any]


def run_trials(jobs: Sequence[RunJob], executor: Executor, directory: Path, *, stop: Sequence[str] = ()) -> dict[str, list[Report]]:
    """Trains the jobs in order in one slot; returns run to its reports, the last of which says how it ended.

    Args:
        jobs: All of the same number of workers.
        executor: How.
        directory: Where Tune may write.
        stop: Runs that are asked to stop, as pruned, at their first report.
    """
    log = directory / "reports.jsonl"
    log.touch()
    space = {"job": tune.grid_search([job.model_dump_json() for job in jobs]), "executor": executor}
    tune.Tuner(
        tune.with_resources(_trial, trial_resources(jobs[0].spec, executor)),
        param_space=space,
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=executor == "warm"),
        run_config=tune.RunConfig(name="trials", storage_path=str(directory / "tune"), verbose=0, callbacks=[_Log(log, stop)]),
    ).fit()
    reports: dict[str, list[Report]] = {job.run: [] for job in jobs}
    for line in log.read_text().splitlines():
        run, report = json.loads(line)
        reports[run].append(report)
    return reports


def _trial(config: Mapping[str, Any]) -> None:
    job = RunJob.model_validate_json(config["job"])
    try:
        end = fit(job, executor=config["executor"], report=tune.report)
    except RunFailedError as failure:
        last = {"failure": str(failure)}
    else:
        last = {"status": end.status.value, "steps": end.steps}
    tune.report({**last, "trial_process": os.getpid(), "kept_workers": _kept_workers(config["executor"])})


def _kept_workers(executor: Executor) -> list[int]:
    """Process ids of the workers that wait in this process for the next run."""
    if executor == "stock":
        return []
    from fat_ray.train import warm

    lane = warm._SLOT._lane
    return [worker.metadata.pid for worker in lane.workers] if lane else []


class _Log(tune.Callback):
    """Writes each report to a file, and asks runs to stop, as a study's driver does."""

    def __init__(self, path: Path, stop: Sequence[str]) -> None:
        self._path = path
        self._stop = list(stop)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Report, **info: Any) -> None:
        job = RunJob.model_validate_json(trial.config["job"])
        report = {key: value for key, value in result.items() if key != "config"}
        with self._path.open("a") as file:
            file.write(json.dumps([job.run, report]) + "\n")
        if job.run in self._stop and report["training_iteration"] == 1:
            request_stop(job.directory, job.run, Status.PRUNED)
