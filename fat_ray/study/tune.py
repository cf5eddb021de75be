"""A study as one Ray Tune experiment: search, scheduler, trial function and callbacks put together."""

from pathlib import Path

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from fat_ray.records.wandb import WandbMirror
from fat_ray.spec.study import StudySpec
from fat_ray.study.callbacks import Mirror, Supervisor
from fat_ray.study.console import ConsoleCallback
from fat_ray.study.ledger import Ledger
from fat_ray.study.plan import Plan
from fat_ray.study.room import Closing, Room
from fat_ray.study.schedule import CooperativeScheduler
from fat_ray.study.search import StudySearch
from fat_ray.study.trial import run_trial
from fat_ray.train.resources import trial_resources
from fat_ray.train.run import resolve


def run_trials(spec: StudySpec, directory: Path, ledger: Ledger, plan: Plan, console: ConsoleCallback, mirror: WandbMirror) -> None:
    """Runs all trials of the study on the connected cluster; how each ended is in the ledger, and in the records.

    Args:
        spec: The study.
        directory: Its directory, absolute.
        ledger: Filled with its trials.
        plan: How many run at the same time.
        console: Shows the progress.
        mirror: Shows the runs in W&B; closed at the end.
    """
    executor = resolve(spec.executor)
    search = StudySearch(spec, directory, ledger, concurrency=plan.concurrency, executor=executor)
    scheduler = CooperativeScheduler(spec.scheduler, spec.train.steps, ledger, directory)
    try:
        tune.Tuner(
            tune.with_resources(run_trial, trial_resources(spec.run, executor)),
            param_space={"placement_timeout_s": spec.budget.placement_timeout_s},
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=ledger.total,
                reuse_actors=executor == "warm",
                trial_name_creator=lambda trial: _name(trial, ledger),
                trial_dirname_creator=lambda trial: _name(trial, ledger),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(directory / "logs"),
                verbose=0,
                stop=Closing(ledger),
                callbacks=[Room(spec, ledger), Supervisor(ledger, directory, spec.budget), Mirror(mirror, ledger), console],
                # One more than a run may use: a kept process whose node left fails a trial that has not even begun.
                failure_config=tune.FailureConfig(max_failures=spec.train.retries + 1, fail_fast=False),
            ),
        ).fit()
    finally:
        search.close()
        mirror.close()


def _name(trial: TuneTrial, ledger: Ledger) -> str:
    return ledger.of(trial.trial_id).name
