"""A study as one Ray Tune experiment: search, scheduler, trial function and callbacks put together."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from fat_ray.errors import SupersededError
from fat_ray.records.driver import DONE, STOPPED
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.spec.study import StudySpec
from fat_ray.study.callbacks import Mirror, Supervisor, used_up
from fat_ray.study.ledger import Ledger
from fat_ray.study.plan import Plan
from fat_ray.study.portrait import Portrait
from fat_ray.study.retention import prune_checkpoints
from fat_ray.study.room import Closing, Room
from fat_ray.study.schedule import CooperativeScheduler
from fat_ray.study.search import StudySearch
from fat_ray.study.trial import run_trial
from fat_ray.train.resources import trial_resources
from fat_ray.train.run import resolve
from fat_ray.train.signals import Listener
from fat_ray.view.document import document


class Course:
    """Where a study stands, and what is to be done: its search and its scheduler, which know what an earlier driver left.

    Args:
        spec: The study.
        directory: Its directory, absolute. This process holds its lock.
        ledger: Filled with its trials.
    """

    def __init__(self, spec: StudySpec, directory: Path, ledger: Ledger) -> None:
        self.spec, self.directory, self.ledger = spec, directory, ledger
        self.search = StudySearch(spec, directory, ledger)
        self.scheduler = CooperativeScheduler(spec.scheduler, spec.train.steps, ledger, directory)

    def is_over(self, now_s: float) -> bool:
        """Whether nothing is left to do. What an earlier driver left when a budget of the whole study was used up is concluded.

        Args:
            now_s: Monotonic clock.
        """
        if self.search.is_complete:
            return True
        self.ledger.close = used_up(self.spec.budget, self.ledger, now_s)
        if self.ledger.close is not None:
            self.search.close()
        return self.ledger.close is not None

    def tidy_up(self, mirror: WandbMirror) -> None:
        """Mirrors what a killed driver had not come to, sums the study up in W&B, and removes checkpoints that nobody needs."""
        mirror.catch_up([run for trial in self.ledger.trials if trial.status is not None for run in trial.ends])
        portrait, close = Portrait(self.spec, self.ledger), self.ledger.close
        portrait.ended = STOPPED if close is not None and close.may_go_on else DONE, str(close or "")
        mirror.sum_up(document(portrait()))
        mirror.close()
        prune_checkpoints(self.directory, self.spec, self.ledger)


def run_trials(course: Course, plan: Plan, watchers: Sequence[Callback], listener: Listener, mirror: WandbMirror) -> None:
    """Runs all trials of the study on the connected cluster; how each ended is in the ledger, and in the records.

    Args:
        course: The study.
        plan: How many run at the same time.
        watchers: Called by Tune, after what the study itself needs.
        listener: Listens to signals.
        mirror: Shows the runs in W&B; closed at the end.

    Raises:
        Interrupted: At the second signal to end. Nothing is concluded then, as after a kill.
    """
    spec, ledger, search = course.spec, course.ledger, course.search
    search.concurrency, search.executor = plan.concurrency, resolve(spec.executor)
    supervisor = Supervisor(ledger, course.directory, spec.budget, listener.listen)
    logs = course.directory / "logs"
    shutil.rmtree(logs / "tune", ignore_errors=True)  # an earlier driver's
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(plan.concurrency)  # by default one, so that lanes would start one after the other
    with _closing(course, mirror):
        tune.Tuner(
            tune.with_resources(run_trial, trial_resources(spec.run, search.executor)),
            param_space={"placement_timeout_s": spec.budget.placement_timeout_s},
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=course.scheduler,
                num_samples=ledger.total,
                reuse_actors=search.executor == "warm",
                trial_name_creator=lambda trial: _name(trial, ledger),
                trial_dirname_creator=lambda trial: _name(trial, ledger),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(logs),
                verbose=0,
                progress_reporter=tune.CLIReporter(),  # silent; in a notebook the default one wipes the cell
                stop=Closing(ledger),
                callbacks=[Room(spec, ledger), supervisor, Mirror(mirror, ledger), *watchers],
                # One more than a run may use: a kept process whose node left fails a trial that has not even begun.
                failure_config=tune.FailureConfig(max_failures=spec.train.retries + 1, fail_fast=False),
            ),
        ).fit()


@contextmanager
def _closing(course: Course, mirror: WandbMirror) -> Iterator[None]:
    """Concludes what is left, unless the study is left as it is."""
    try:
        yield
    except (KeyboardInterrupt, SupersededError):
        raise
    except BaseException:
        _close(course, mirror)
        raise
    _close(course, mirror)


def _close(course: Course, mirror: WandbMirror) -> None:
    course.search.close()
    course.tidy_up(mirror)


def _name(trial: TuneTrial, ledger: Ledger) -> str:
    return ledger.of(trial.trial_id).name
