"""Runs that lose a worker go on by themselves, from their newest checkpoint."""

import logging
from collections.abc import Callable

from fat_ray.errors import WorkerLostError
from fat_ray.events import RunEnd
from fat_ray.spec.job import RunJob

log = logging.getLogger(__name__)


def with_retries(job: RunJob, train: Callable[[RunJob], RunEnd]) -> RunEnd:
    """Trains a run, and again after each loss of a worker, as often as `train.retries` says.

    Args:
        job: The run.
        train: Trains a job to its end. From the second time on the job says that it goes on with what is there.

    Raises:
        WorkerLostError: It happened once too often.
        RunFailedError: The run broke for another reason, which would be there again.
    """
    for left in range(job.spec.train.retries, 0, -1):
        try:
            return train(job)
        except WorkerLostError as error:
            log.warning("%s: %s; it goes on from its newest checkpoint (retries left: %d)", job.run, error, left - 1)
            job = job.model_copy(update={"resume": True})
    return train(job)
