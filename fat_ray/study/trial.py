"""A trial as Ray Tune runs it: the runs of its seeds, one after the other. Lives in a process of the cluster, not in the driver."""

import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune

from fat_ray.errors import FatRayError
from fat_ray.events import Status
from fat_ray.spec.job import RunJob
from fat_ray.train.failure import one_line, write_log
from fat_ray.train.run import fit
from fat_ray.train.stop import stop_requested


def run_trial(config: dict[str, Any]) -> None:
    """Trains the runs of one trial and reports to Tune: each evaluation with its seed's position, each seed that is done, and a failure.

    Runs that an earlier driver's trial completed are left out.

    A run that does not complete ends the trial. Failures are reported, not raised: Tune then goes on, and the driver has the reason.

    Args:
        config: As `fat_ray.study.search.StudySearch.suggest` returns it.
    """
    jobs = [RunJob.model_validate_json(text) for text in config["jobs"]]
    for position, job in list(enumerate(jobs))[config["done"] :]:
        if stop_requested(job.directory, job.run) is Status.STOPPED:
            return
        try:
            end = fit(job, executor=config["executor"], report=partial(_report, position))
        except Exception as error:  # noqa: BLE001 - whatever broke one run, the study goes on
            if not isinstance(error, FatRayError):
                write_log(job.directory, job.run, "".join(traceback.format_exception(error)))
            tune.report({"failure": one_line(error)})
            return
        tune.report({"seeds_done": position + 1})
        if end.status is not Status.COMPLETED:
            return


def _report(position: int, metrics: Mapping[str, Any]) -> None:
    tune.report({**metrics, "position": position})
