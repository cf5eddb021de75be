"""A trial as Ray Tune runs it: the runs of its seeds, one after the other. Lives in a process of the cluster, not in the driver."""

import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from fat_ray.errors import FatRayError, NotBegunError, PlaceLostError, WorkerLostError
from fat_ray.events import RunEnd, Status
from fat_ray.records.reader import run_end, runs
from fat_ray.spec.job import RunJob
from fat_ray.train.failure import one_line, write_log
from fat_ray.train.run import fit
from fat_ray.train.stop import stop_requested


def run_trial(config: dict[str, Any]) -> None:
    """Trains the runs of one trial and reports to Tune: each evaluation with its seed's position, each seed that is done, and a failure.

    Runs that an earlier driver's trial completed are left out.

    A run that does not complete ends the trial. Failures are reported, not raised: Tune then goes on, and the driver has the reason.
    Only a trial whose place is gone raises, so that Tune lets go of the rest of the place and starts the trial elsewhere, where it goes on.

    Args:
        config: What `fat_ray.study.search.StudySearch.suggest` returns and `fat_ray.study.tune.run_trials` adds.
    """
    jobs = [RunJob.model_validate_json(text) for text in config["jobs"]]
    for position, job in list(enumerate(jobs))[config["done"] :]:
        if stop_requested(job.directory, job.run) is Status.STOPPED:
            return
        try:
            end = _train(job, config, position)
        except NotBegunError:
            return
        except Exception as error:
            if not isinstance(error, FatRayError):
                write_log(job.directory, job.run, "".join(traceback.format_exception(error)))
            tune.report({"failure": one_line(error)})
            if isinstance(error, PlaceLostError):
                raise
            return
        tune.report({"seeds_done": position + 1})
        if end.status is not Status.COMPLETED:
            return


def _train(job: RunJob, config: Mapping[str, Any], position: int) -> RunEnd:
    if restarts := config.get("restarts", 0):
        end = run_end(job.directory, job.run)
        if end is not None and end.status not in (Status.FAILED, Status.STOPPED):
            return end
        job = _again(job, restarts)
    report = partial(_report, position)
    return fit(job, executor=config["executor"], report=report, placement_timeout_s=config["placement_timeout_s"])


def _again(job: RunJob, restarts: int) -> RunJob:
    """The job of a trial whose process died so many times. What had begun goes on; it may lose its processes `train.retries` times."""
    if job.run not in runs(Path(job.directory)):
        return job
    left = job.spec.train.retries - restarts
    if left < 0:
        raise WorkerLostError(f"the process of its trial died or was killed, and train.retries = {job.spec.train.retries} is used up")
    train = job.spec.train.model_copy(update={"retries": left})
    return job.model_copy(update={"resume": True, "spec": job.spec.model_copy(update={"train": train})})


def _report(position: int, metrics: Mapping[str, Any]) -> None:
    tune.report({**metrics, "position": position})
