"""The picture of a study as its driver sees it: from the ledger, without looking at the records."""

import time

from fat_ray.records.driver import ENDING, RUNNING
from fat_ray.spec.study import StudySpec, as_json, shown_objective
from fat_ray.study.ledger import Ledger, Trial
from fat_ray.study.verdict import worth
from fat_ray.view import picture
from fat_ray.view.picture import Picture, TrialLine


class Portrait:
    """Draws a study whenever it is asked to.

    Args:
        spec: The study.
        ledger: Its trials.

    Attributes:
        shown: The metric of `TrialLine.last` and `TrialLine.best`.
        ended: How the study ended, and why; None while it has not.
    """

    def __init__(self, spec: StudySpec, ledger: Ledger) -> None:
        self._spec, self._ledger = spec, ledger
        self.shown = shown_objective(as_json(spec))
        self.ended: tuple[str, str] | None = None
        self._over: dict[str, TrialLine] = {}

    def __call__(self, now_s: float | None = None) -> Picture:
        """The study now, by the monotonic clock."""
        now_s, ledger = time.monotonic() if now_s is None else now_s, self._ledger
        state, detail = self.ended or going(ledger)
        return Picture(
            study=self._spec.name,
            state=state,
            detail=detail,
            metric=self.shown.metric,
            objectives=self._spec.objectives,
            total=ledger.total,
            trials=[self.line(trial, now_s) for trial in list(ledger.trials)],
            elapsed_s=now_s - ledger.started_s,
            warnings=list(ledger.notes),
        )

    def line(self, trial: Trial, now_s: float) -> TrialLine:
        """One trial; nothing changes any more in one that has ended."""
        known = self._over.get(trial.name)
        if known is not None and (known.state, known.reason) == (trial.status, trial.reason):
            return known
        line = self._line(trial, now_s)
        if line.is_over:
            self._over[trial.name] = line
        return line

    def _line(self, trial: Trial, now_s: float) -> TrialLine:
        return TrialLine(
            name=trial.name,
            params=trial.params,
            state=_state(trial),
            seeds_done=trial.seeds_done if trial.status is None else len(trial.results),
            seeds=len(trial.jobs),
            step=trial.step,
            steps=trial.steps,
            last=trial.last(self.shown.metric),
            best=trial.best(self.shown.metric, self.shown.direction),
            active=trial.active,
            elapsed_s=trial.elapsed_s(now_s),
            reason=trial.reason,
            values=worth(trial, self._spec.objectives),
            is_baseline=trial.is_baseline,
        )


def going(ledger: Ledger) -> tuple[str, str]:
    """What a study that has not ended is doing, and more about that."""
    return (RUNNING, "") if ledger.close is None else (ENDING, f"ends early: {ledger.close}")


def _state(trial: Trial) -> str:
    """One word for what a trial is doing, or how it ended."""
    if trial.status is not None:
        return trial.status.value
    if trial.started_s is None:
        return picture.WAITING
    return picture.STOPPING if trial.asked_to_stop else picture.RUNNING
