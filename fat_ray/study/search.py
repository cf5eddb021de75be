"""What runs next: baselines, the trials that Optuna suggests, and last the baselines that follow a schedule of the search.

Optuna's journal holds the search: a trial is COMPLETE only when all its runs completed with finite objectives, PRUNED when the
scheduler stopped it, and FAIL with the reason otherwise. Baselines are not in it.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from fat_ray.errors import SpecError
from fat_ray.events import RunEnd, Status
from fat_ray.records.reader import runs
from fat_ray.rules import compromise
from fat_ray.spec.baseline import BaselineSpec
from fat_ray.spec.search import observers
from fat_ray.spec.study import StudySpec, as_json, num_search_trials
from fat_ray.study.front import trials_without_gain
from fat_ray.study.jobs import matched_random, reference_trial, search_trial
from fat_ray.study.journal import Journal
from fat_ray.study.ledger import Ledger, Trial
from fat_ray.study.verdict import conclude, objective_values, recall, seed_values

_LOST = "the driver of the study ended while it ran"


class StudySearch(Searcher):  # type: ignore[misc]
    """Hands out trials to Ray Tune and concludes them from their records.

    Opened on a study that an earlier driver left, it goes on after that one's last trial.

    Args:
        spec: The study.
        directory: Its directory.
        ledger: Where trials are entered.
        concurrency: Trials that may wait or run at the same time.
        executor: How the trial function trains; passed on to it.
    """

    def __init__(self, spec: StudySpec, directory: Path, ledger: Ledger, *, concurrency: int, executor: str) -> None:
        super().__init__()
        self._spec, self._directory, self._ledger = spec, directory, ledger
        self._concurrency, self._executor = concurrency, executor
        self._journal = Journal(spec, directory)
        self._open: set[int] = set()
        self._values: dict[str, list[float]] = {}
        self._refused = 0
        self._recover()
        self._plan = self._sequence()

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of the search, which is never read: the journal and the records are the truth."""
        return {**self.__dict__, "_plan": None, "_journal": None}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:  # noqa: ARG002
        """Metric and space are the study's own."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial for Tune; None when none may start now, FINISHED when there are no more."""
        if self._ledger.close is not None:
            return str(Searcher.FINISHED)
        if sum(1 for _ in self._ledger.live()) >= self._concurrency:
            return None
        trial = next(self._plan, Searcher.FINISHED)
        if not isinstance(trial, Trial):
            return trial
        self._ledger.add(trial_id, trial)
        return {"jobs": [job.model_dump_json() for job in trial.jobs], "executor": self._executor}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Notes the evaluation; a search with one objective learns from it even if the trial is pruned later."""
        trial = self._ledger.of(trial_id)
        position = trial.note(result)
        if position is not None and trial.number in self._open and len(self._spec.objectives) == 1:
            self._report(trial, position)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """Concludes the trial from its records; nothing that went wrong in it stops the study."""
        trial = self._ledger.of(trial_id)
        if trial.status is None:
            failure = (result or {}).get("failure")
            self._conclude(trial, failure or ("its trial process died" if error else None))

    def close(self) -> None:
        """Concludes what is left when the study ends early, so that no trial stays RUNNING in the journal."""
        for trial in list(self._ledger.live()):
            trial.asked_to_stop = Status.STOPPED
            self._conclude(trial, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept beside the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is kept beside the journal."""

    def _recover(self) -> None:
        """Enters the trials of an earlier driver; what it left RUNNING is told how its records say that it ended, else FAIL."""
        for told in self._journal.trials:
            name = f"t{told.number:04d}"
            running = not told.state.is_finished()
            try:
                trial = search_trial(self._spec, self._directory, told.number, told.params)
            except SpecError as error:
                self._refuse(told.number, told.params, str(error), tell=running)
                continue
            self._ledger.add(f"before-{name}", trial)
            recall(trial, self._directory)
            self._open |= {told.number} if running else set()
            self._conclude(trial, _LOST if running else None)
            if told.state is TrialState.COMPLETE:
                self._values[name] = list(told.values)

    def _known(self, trial: Trial) -> bool:
        """Whether an earlier driver ran this baseline; it is entered then."""
        if not any(job.run in runs(self._directory) for job in trial.jobs):
            return False
        self._ledger.add(f"before-{trial.name}", trial)
        self._conclude(trial, _LOST)
        return True

    def _sequence(self) -> Iterator[Trial | None]:
        """Trials in their order; None while one has to wait for others to end."""
        references = [(baseline, reference_trial(self._spec, self._directory, baseline)) for baseline in self._spec.references]
        yield from (trial for baseline, trial in references if not baseline.is_matched and not self._known(trial))
        yield from self._observed()
        yield from self._searched()
        for baseline, trial in references:
            if not baseline.is_matched or self._known(trial):
                continue
            while any(not other.is_baseline for other in self._ledger.live()):
                yield None
            leader = self._leader(baseline)
            if leader is not None:
                yield matched_random(self._spec, self._directory, baseline, leader)

    def _observed(self) -> Iterator[None]:
        """Waits until the drift is recorded that a warm start replays; says so if there is none."""
        names = [observer.name for observer in observers(self._spec)] if self._spec.warm_start == "replay" else []
        while any(trial.name in names for trial in self._ledger.live()):
            yield None
        if self._journal.warm_start.setting(len(self._journal.trials)) is None and self._journal.warm_start.problem:
            self._ledger.notes.append(self._journal.warm_start.problem)

    def _searched(self) -> Iterator[Trial]:
        """The trials that Optuna suggests; a suggestion that is refused counts as one, so that the search ends whatever the space is."""
        total = num_search_trials(as_json(self._spec))
        while len(self._journal.trials) < total and not self._is_stalled(total) and (asked := self._journal.ask()) is not None:
            number, params = asked
            try:
                trial = search_trial(self._spec, self._directory, number, params)
            except SpecError as error:
                self._refuse(number, params, str(error), tell=True)
                continue
            self._open.add(number)
            yield trial
        if self._refused == total:
            self._ledger.failure = f"the search ran no trial: all {total} suggested settings are combinations that do not go together"

    def _is_stalled(self, total: int) -> bool:
        """Whether the front has not grown for as long as the study's patience lasts."""
        patience = self._spec.budget.patience_trials
        if patience is None:
            return False
        since = trials_without_gain(self._journal.outcomes, [objective.direction for objective in self._spec.objectives])
        if since < patience:
            return False
        left = total - len(self._journal.trials)
        self._ledger.total -= left
        self._ledger.notes.append(
            f"the search ended {left} trials early: for {since} trials its front had not grown (budget.patience_trials)"
        )
        return True

    def _refuse(self, number: int, params: dict[str, Any], reason: str, *, tell: bool) -> None:
        """A suggestion whose values do not go together: the journal and, once, the user are told."""
        if tell:
            self._journal.fail(number, reason)
        self._refused += 1
        self._ledger.total -= 1
        if self._refused == 1:
            chosen = ", ".join(f"{key} = {value}" for key, value in params.items())
            why = " ".join(reason.split())
            self._ledger.notes.append(
                f"suggested settings that do not go together are not run and use up the budget; first {chosen}: {why}"
            )

    def _report(self, trial: Trial, position: int) -> None:
        """The running mean of the objective, at the steps of all seeds so far."""
        assert trial.number is not None
        value = trial.curve(self._spec.objectives[0].metric, position).get(trial.step, math.nan)
        if math.isfinite(value):
            self._journal.report(trial.number, position * trial.steps + trial.step, value)

    def _conclude(self, trial: Trial, failure: str | None) -> None:
        ends = conclude(trial, self._directory, failure, time.monotonic())
        if trial.number in self._open:
            self._open.remove(trial.number)
            self._tell(trial.number, trial, ends)

    def _tell(self, number: int, trial: Trial, ends: Sequence[RunEnd]) -> None:
        if trial.status is Status.PRUNED:
            self._journal.prune(number, trial.reason)
            return
        if trial.status is not Status.COMPLETED:
            self._journal.fail(number, f"{trial.status}: {trial.reason}")
            return
        try:
            values = objective_values(self._spec.objectives, ends)
        except ValueError as error:
            trial.status, trial.reason = Status.FAILED, str(error)
            self._journal.fail(number, trial.reason)
            return
        self._values[trial.name] = values
        self._journal.complete(number, values, seed_values(self._spec.objectives, ends))

    def _leader(self, baseline: BaselineSpec) -> Trial | None:
        """The Fisher-drift trial to follow: the best compromise so far, or the one that is named; None, with a note, without any."""
        follow = baseline.set.get("freeze.follow", self._spec.freeze.follow)
        finished = [
            trial
            for trial in self._ledger.trials
            if trial.status is Status.COMPLETED and trial.jobs[0].spec.freeze.policy == "fisher_drift"
        ]
        if follow is not None:
            leader = next((trial for trial in finished if any(job.run == follow for job in trial.jobs)), None)
        else:
            values = {trial.name: self._values[trial.name] for trial in finished if trial.name in self._values}
            directions = [objective.direction for objective in self._spec.objectives]
            best = compromise(values, directions) if values else None
            leader = next((trial for trial in finished if trial.name == best), None)
        if leader is None:
            what = f"run {follow} of this study with policy fisher_drift" if follow else "run with policy fisher_drift"
            self._ledger.notes.append(f"baseline {baseline.name} was skipped: no {what} completed, so there is no schedule to follow")
        return leader
