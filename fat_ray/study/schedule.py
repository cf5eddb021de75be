"""Early stopping that asks: Ray's schedulers judge, and a trial that they would stop is asked to end itself at its next step.

Tune never kills a trial, so its workers leave in good order, write their last record, and free what they held.
"""

import math
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from fat_ray.events import Status
from fat_ray.spec.study import SchedulerSpec
from fat_ray.study.ledger import Ledger, Trial
from fat_ray.train.stop import request_stop

TIME = "step"
"""What trials are compared at; `training_iteration` would count reports."""


def build_judge(spec: SchedulerSpec, steps: int) -> TrialScheduler | None:
    """Ray's scheduler as the study names it; None when all trials run to their end.

    Args:
        spec: Its settings.
        steps: Optimizer steps of a full run.
    """
    mode = {"maximize": "max", "minimize": "min"}[spec.direction]
    match spec.name:
        case "asha":
            return ASHAScheduler(
                TIME, spec.metric, mode, max_t=steps, grace_period=spec.grace_steps, reduction_factor=spec.reduction, stop_last_trials=False
            )
        case "median":
            return MedianStoppingRule(TIME, spec.metric, mode, grace_period=spec.grace_steps)
        case "none":
            return None


class CooperativeScheduler(FIFOScheduler):  # type: ignore[misc]
    """Shows the evaluations of search trials to a judge and turns its STOP into a request.

    Baselines are never shown. Of a trial with several seeds the first is judged: the others report nothing to Tune.

    Args:
        judge: A scheduler of Ray Tune, or None.
        metric: What it judges by.
        ledger: The study's trials.
        directory: The study's directory, where requests are left.
    """

    def __init__(self, judge: TrialScheduler | None, metric: str, ledger: Ledger, directory: Path) -> None:
        super().__init__()
        self._judge, self._judged_by = judge, metric
        self._ledger, self._directory = ledger, directory
        self._last: dict[str, dict[str, Any]] = {}
        self._dismissed: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Enters a search trial with the judge."""
        if self._judge is not None and not self._ledger.of(trial.trial_id).is_baseline:
            self._judge.on_trial_add(tune_controller, trial)
        else:
            self._dismissed.add(trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Always CONTINUE; a trial that the judge would stop is asked to end as pruned."""
        ours = self._ledger.of(trial.trial_id)
        if trial.trial_id not in self._dismissed and TIME in result and math.isfinite(result.get(self._judged_by, math.nan)):
            assert self._judge is not None
            self._last[trial.trial_id] = result
            decision = self._judge.on_trial_result(tune_controller, trial, result)
            if decision == TrialScheduler.STOP and result[TIME] < ours.steps:
                self._prune(ours)
                self._dismiss(tune_controller, trial)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:  # noqa: ARG002
        """Tells the judge the last evaluation; what Tune passes on may be a report without one."""
        self._dismiss(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Takes the trial from the judge."""
        self._dismiss(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Takes the trial from the judge."""
        self._dismiss(tune_controller, trial)

    def _prune(self, trial: Trial) -> None:
        if trial.asked_to_stop is None:
            trial.asked_to_stop = Status.PRUNED
            request_stop(self._directory, trial.jobs[0].run, Status.PRUNED)

    def _dismiss(self, tune_controller: Any, trial: TuneTrial) -> None:
        """The judge hears of the trial for the last time."""
        if trial.trial_id in self._dismissed:
            return
        self._dismissed.add(trial.trial_id)
        assert self._judge is not None
        last = self._last.pop(trial.trial_id, None)
        if last is None:
            self._judge.on_trial_remove(tune_controller, trial)
        else:
            self._judge.on_trial_complete(tune_controller, trial, last)
