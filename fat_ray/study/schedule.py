"""Early stopping that asks: a judge looks at each evaluation, and a trial that it would stop is asked to end itself at its next step.

Tune never kills a trial, so its workers leave in good order, write their last record, and free what they held.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from fat_ray.events import Status
from fat_ray.spec.study import SchedulerSpec
from fat_ray.study.judges import build_judge
from fat_ray.study.ledger import Ledger, Trial
from fat_ray.train.stop import request_stop


class CooperativeScheduler(FIFOScheduler):  # type: ignore[misc]
    """Shows the running mean of search trials to a judge and turns its answer into a request; baselines are never shown.

    Args:
        spec: Who judges, by what.
        steps: Optimizer steps of a full run.
        ledger: The study's trials.
        directory: The study's directory, where requests are left.
    """

    def __init__(self, spec: SchedulerSpec, steps: int, ledger: Ledger, directory: Path) -> None:
        super().__init__()
        self._judge, self._spec = build_judge(spec, steps), spec
        self._ledger, self._directory = ledger, directory
        for trial in ledger.trials:
            self._show_again(trial)

    def _show_again(self, trial: Trial) -> None:
        """Shows a trial that an earlier driver ran, up to where it was to stop: as a bar for the next ones, and as it is to stop still."""
        for position in range(0 if trial.is_baseline else len(trial.evaluations)):
            cut = self._cut(trial, position)
            if cut is not None:
                trial.cuts[position] = cut
                if trial.status is None and position == trial.seeds_done:
                    trial.asked_to_stop = Status.PRUNED

    def _cut(self, trial: Trial, position: int) -> int | None:
        """The step at which the judge would stop this seed; None if it would not."""
        curve = trial.curve(self._spec.metric, position)
        for step in curve:
            if self._verdict(trial, position, {at: value for at, value in curve.items() if at <= step}) and step < trial.steps:
                return step
        return None

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:  # noqa: ARG002 - Tune's interface
        """Always CONTINUE; a trial that the judge would stop is asked to end as pruned."""
        ours = self._ledger.of(trial.trial_id)
        position = ours.note(result)
        if position is not None and self._judge is not None and not ours.is_baseline and ours.asked_to_stop is None:
            self._look(ours, position)
        return str(TrialScheduler.CONTINUE)

    def _look(self, trial: Trial, position: int) -> None:
        """Judges the trial at the evaluation that just came, unless that is its seed's last or holds no value."""
        curve = trial.curve(self._spec.metric, position)
        if trial.step not in curve:
            self._miss(trial, position)
        elif self._verdict(trial, position, curve) and trial.step < trial.steps:
            trial.asked_to_stop, trial.cuts[position] = Status.PRUNED, trial.step
            request_stop(self._directory, trial.jobs[position].run, Status.PRUNED)

    def _verdict(self, trial: Trial, position: int, curve: Mapping[int, float]) -> bool:
        """Whether the judge would stop the trial."""
        if self._judge is None or not curve:
            return False
        assert trial.number is not None
        sign = 1.0 if self._spec.direction == "maximize" else -1.0
        return self._judge.stops(trial.number, position, {step: sign * value for step, value in curve.items()})

    def _miss(self, trial: Trial, position: int) -> None:
        """Says once that the metric is not there: nothing is stopped then."""
        known = sorted(key for key in trial.evaluations[position][trial.step] if key.startswith("val/"))
        note = f"scheduler.metric {self._spec.metric} is not reported, so no trial was stopped early; the task reports {', '.join(known)}"
        if self._spec.metric not in known and note not in self._ledger.notes:
            self._ledger.warn(note)
