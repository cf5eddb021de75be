"""Which checkpoints a study keeps: those of trials that may go on, and of the front; nobody asks for the others again."""

import logging
from pathlib import Path

from fat_ray.engine.vault import check, checkpoints, forget, prune, runs_with_checkpoints
from fat_ray.errors import RecordError
from fat_ray.events import Status
from fat_ray.records.files import explain
from fat_ray.rules import front_ranks
from fat_ray.spec.study import StudySpec
from fat_ray.study.ledger import Ledger, Trial
from fat_ray.study.verdict import worth

log = logging.getLogger(__name__)


def prune_checkpoints(directory: Path, spec: StudySpec, ledger: Ledger) -> list[str]:
    """Removes the checkpoints of all runs whose trials ended and are not on the front; of runs that the ledger does not know, none.

    The best trial of each objective is on the front, and so is the best compromise. Trials of a study that was interrupted may go on.

    Args:
        directory: The study's directory.
        spec: The study; with ``train.checkpoint.retain: all`` nothing is removed.
        ledger: Its trials.

    Returns:
        The runs, in order.
    """
    if spec.train.checkpoint.retain == "all":
        return []
    present = runs_with_checkpoints(directory)
    if not present:
        return []
    kept = {trial.name for trial in front(ledger, spec)}
    over = {job.run for trial in ledger.trials if _is_over(trial, ledger) and trial.name not in kept for job in trial.jobs}
    removed = [run for run in present if run in over]
    for run in removed:
        try:
            forget(directory, run)
        except OSError as error:
            log.warning("the checkpoints of %s could not be removed: %s", run, explain(error, directory))
    return removed


def slim_checkpoints(directory: Path, spec: StudySpec, ledger: Ledger) -> None:
    """For want of space: besides, of each trial that completed, all but the newest checkpoint, if that one is whole."""
    prune_checkpoints(directory, spec, ledger)
    for job in (job for trial in ledger.trials if trial.status is Status.COMPLETED for job in trial.jobs):
        newest = next(iter(checkpoints(directory, job.run)), None)
        try:
            if newest is not None:
                check(newest, job.run)
                prune(directory, job.run, keep=1)
        except (OSError, RecordError) as error:
            log.warning("the older checkpoints of %s stay: %s", job.run, error)


def front(ledger: Ledger, spec: StudySpec) -> list[Trial]:
    """Completed trials that no other completed trial beats in all objectives at once; baselines among them."""
    known = [(trial, values) for trial in ledger.trials if (values := worth(trial, spec.objectives)) is not None]
    ranks = front_ranks([values for _, values in known], [objective.direction for objective in spec.objectives])
    return [trial for (trial, _), rank in zip(known, ranks, strict=True) if rank == 1]


def _is_over(trial: Trial, ledger: Ledger) -> bool:
    """Whether it has ended, and does not go on when the study is resumed."""
    goes_on = trial.status is Status.STOPPED and ledger.close is not None and ledger.close.may_go_on
    return trial.status is not None and not goes_on
