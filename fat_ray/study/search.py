"""What runs next: baselines, the trials that Optuna suggests, and last the baselines that follow a schedule of the search.

Optuna's journal holds the search: a trial is COMPLETE only when all its runs completed with finite objectives, PRUNED when the
scheduler stopped it, and FAIL with the reason otherwise. Baselines are not in it.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
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
from fat_ray.study.ledger import Close, Ledger, Trial
from fat_ray.study.verdict import conclude, objective_values, recall, seed_values
from fat_ray.train.lease import read_driver
from fat_ray.train.stop import clear_requests, request_stop


class StudySearch(Searcher):  # type: ignore[misc]
    """Hands out trials to Ray Tune and concludes them from their records.

    Opened on a study that an earlier driver left, it goes on as that one would have: what had not ended is handed out first, under the same
    number and ids.

    Args:
        spec: The study.
        directory: Its directory.
        ledger: Where trials are entered.
        concurrency: Trials that may wait or run at the same time.
        executor: How the trial function trains; passed on to it.
    """

    def __init__(self, spec: StudySpec, directory: Path, ledger: Ledger, *, concurrency: int = 1, executor: str = "stock") -> None:
        super().__init__()
        self._spec, self._directory, self._ledger = spec, directory, ledger
        self.concurrency, self.executor = concurrency, executor
        self._driver = read_driver(directory).number
        self._journal = Journal(spec, directory)
        self._total = num_search_trials(as_json(spec))
        self._open: set[int] = set()
        self._left: dict[str, bool] = {}
        self._values: dict[str, list[float]] = {}
        self._refused = 0
        self._recover()
        self._plan = self._sequence()

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to do, whatever the budgets of the whole study allow."""
        if self._left or self._wants_more:
            return False
        missing = [baseline for baseline in self._spec.references if not self._journal.concluded(baseline.name)]
        return all(baseline.is_matched and self._leader(baseline) is None for baseline in missing)

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of the search, which is never read: the journal and the records are the truth."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:  # noqa: ARG002
        """Metric and space are the study's own."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial for Tune; None when none may start now, FINISHED when there are no more."""
        if self._ledger.close is not None:
            return str(Searcher.FINISHED)
        if len(self._ledger.handed_out()) >= self.concurrency:
            return None
        trial = next(self._plan, Searcher.FINISHED)
        if not isinstance(trial, Trial):
            return trial
        # What an earlier driver left alive may have begun it by now: that is found out when its lock is held.
        trial.jobs = [job.model_copy(update={"driver": self._driver, "resume": self._driver != 1}) for job in trial.jobs]
        self._ledger.add(trial_id, trial)
        return {"jobs": [job.model_dump_json() for job in trial.jobs], "done": trial.seeds_done, "executor": self.executor}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Notes the evaluation; a search with one objective learns from it even if the trial is pruned later."""
        trial = self._ledger.of(trial_id)
        position = trial.note(result)
        if position is not None:
            self._report(trial, position)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """Concludes the trial from its records; nothing that went wrong in it stops the study."""
        trial = self._ledger.of(trial_id)
        if trial.status is None:
            failure = (result or {}).get("failure") or trial.failure
            self._conclude(trial, failure or ("its trial process died" if error else None))

    def close(self) -> None:
        """Concludes what is left when the study ends early: only trials of a study that was interrupted stay RUNNING in the journal.

        When the cluster became too small, so do those that an earlier driver left and that have not been handed out again.
        """
        for trial in self._ledger.handed_out() if self._ledger.close is Close.NO_ROOM else list(self._ledger.live()):
            trial.asked_to_stop = Status.STOPPED
            self._conclude(trial, trial.failure)

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept beside the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is kept beside the journal."""

    def _recover(self) -> None:
        """Enters what an earlier driver left, in the order in which it was handed out."""
        references = [reference_trial(self._spec, self._directory, baseline) for baseline in self._spec.references]
        matched = {baseline.name for baseline in self._spec.references if baseline.is_matched}
        begun = set(runs(self._directory))
        for trial in references:
            if trial.name not in matched and (self._journal.concluded(trial.name) or any(job.run in begun for job in trial.jobs)):
                self._enter(trial, ended=self._journal.concluded(trial.name))
        for told in self._journal.trials:
            self._recover_told(told)
        for trial in references:
            if trial.name in matched and self._journal.concluded(trial.name):
                self._enter(trial, ended=True)

    def _recover_told(self, told: FrozenTrial) -> None:
        ended = told.state.is_finished()
        try:
            trial = search_trial(self._spec, self._directory, told.number, told.params)
        except SpecError as error:
            self._refuse(told.number, told.params, str(error), tell=not ended)
            return
        self._enter(trial, ended=ended)
        if told.state is TrialState.COMPLETE:
            self._values[trial.name] = list(told.values)
        elif told.state is TrialState.FAIL and trial.status is Status.COMPLETED:  # its objectives were none
            trial.status, trial.reason = Status.FAILED, told.user_attrs.get("reason", "")

    def _enter(self, trial: Trial, *, ended: bool) -> None:
        """A trial of an earlier driver; one that had not ended, as far as that driver told, is left to be concluded or to go on."""
        self._ledger.trials.append(trial)
        is_trained = recall(trial, self._directory)
        if ended:
            self._conclude(trial, None)
            return
        self._left[trial.name] = is_trained
        for job in trial.jobs:
            clear_requests(self._directory, job.run)  # they were the earlier driver's
        if trial.number is not None:
            self._open.add(trial.number)

    def _sequence(self) -> Iterator[Trial | None]:
        """Trials in their order; None while one has to wait for others to end."""
        yield from self._gone_on(trial for trial in self._ledger.trials if trial.is_baseline)
        entered = {trial.name for trial in self._ledger.trials}
        for baseline in self._spec.references:
            if not baseline.is_matched and baseline.name not in entered:
                yield reference_trial(self._spec, self._directory, baseline)
        yield from self._gone_on(trial for trial in self._ledger.trials if not trial.is_baseline)
        yield from self._observed()
        yield from self._searched()
        for baseline in self._spec.references:
            if not baseline.is_matched or self._journal.concluded(baseline.name):
                continue
            while any(not other.is_baseline for other in self._ledger.live()):
                yield None
            if (leader := self._leader(baseline)) is None:
                self._skip(baseline)
            else:
                yield from self._matched(baseline, leader)

    def _gone_on(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """Those of the trials that an earlier driver left and that have something left to train; the others are concluded."""
        for trial in [trial for trial in trials if trial.name in self._left]:
            is_trained = self._left.pop(trial.name)
            for position in range(len(trial.evaluations)):
                self._report_all(trial, position)
            if is_trained:
                self._conclude(trial, None)
                continue
            if trial.asked_to_stop is Status.PRUNED:  # it was to stop when its driver was killed
                request_stop(self._directory, trial.jobs[trial.seeds_done].run, Status.PRUNED)
            yield trial

    def _matched(self, baseline: BaselineSpec, leader: Trial) -> Iterator[Trial]:
        """The baseline that follows this leader, which an earlier driver may have begun."""
        trial = matched_random(self._spec, self._directory, baseline, leader)
        begun = set(runs(self._directory))
        if any(job.run in begun for job in trial.jobs):
            self._enter(trial, ended=False)
            yield from self._gone_on([trial])
        else:
            yield trial

    def _observed(self) -> Iterator[None]:
        """Waits until the drift is recorded that a warm start replays; says so if there is none."""
        names = [observer.name for observer in observers(self._spec)] if self._spec.warm_start == "replay" else []
        while any(trial.name in names for trial in self._ledger.live()):
            yield None
        if self._journal.warm_start.setting(len(self._journal.trials)) is None and self._journal.warm_start.problem:
            self._ledger.warn(self._journal.warm_start.problem)

    def _searched(self) -> Iterator[Trial]:
        """The trials that Optuna suggests; a suggestion that is refused counts as one, so that the search ends whatever the space is."""
        while self._wants_more and (asked := self._journal.ask()) is not None:
            number, params = asked
            try:
                trial = search_trial(self._spec, self._directory, number, params)
            except SpecError as error:
                self._refuse(number, params, str(error), tell=True)
                continue
            self._open.add(number)
            yield trial
        self._note_stalling()
        if self._refused == self._total:
            self._ledger.failure = f"the search ran no trial: all {self._total} suggested settings are combinations that do not go together"

    @property
    def _wants_more(self) -> bool:
        """Whether another trial is to be suggested."""
        return len(self._journal.trials) < self._total and self._stalled_for is None and self._journal.has_more

    @property
    def _stalled_for(self) -> int | None:
        """For how many trials the front has not grown, once that is as long as the study's patience lasts."""
        patience = self._spec.budget.patience_trials
        if patience is None:
            return None
        since = trials_without_gain(self._journal.outcomes, [objective.direction for objective in self._spec.objectives])
        return None if since < patience else since

    def _note_stalling(self) -> None:
        left, since = self._total - len(self._journal.trials), self._stalled_for
        if left and since is not None:
            self._ledger.total -= left
            self._ledger.warn(f"the search ended {left} trials early: for {since} trials its front had not grown (budget.patience_trials)")

    def _refuse(self, number: int, params: dict[str, Any], reason: str, *, tell: bool) -> None:
        """A suggestion whose values do not go together: the journal and, once, the user are told."""
        if tell:
            self._journal.fail(number, reason)
        self._refused += 1
        self._ledger.total -= 1
        if self._refused == 1:
            chosen = ", ".join(f"{key} = {value}" for key, value in params.items())
            why = " ".join(reason.split())
            self._ledger.warn(f"suggested settings that do not go together are not run and use up the budget; first {chosen}: {why}")

    def _report(self, trial: Trial, position: int) -> None:
        """The running mean of the objective at the evaluation that just came, at the steps of all seeds so far."""
        curve = trial.curve(self._spec.objectives[0].metric, position)
        self._report_values(trial, position, {step: value for step, value in curve.items() if step == trial.step})

    def _report_all(self, trial: Trial, position: int) -> None:
        """The same of all evaluations of a seed: an earlier driver may have missed some."""
        self._report_values(trial, position, trial.curve(self._spec.objectives[0].metric, position))

    def _report_values(self, trial: Trial, position: int, curve: Mapping[int, float]) -> None:
        if trial.number not in self._open or len(self._spec.objectives) > 1:
            return
        for step, value in curve.items():
            if step <= trial.cuts.get(position, step):  # how far a run comes until it has heard that it is to stop is a matter of time
                self._journal.report(trial.number, position * trial.steps + step, value)

    def _conclude(self, trial: Trial, failure: str | None) -> None:
        interrupted = self._ledger.close is not None and self._ledger.close.may_go_on
        ends = conclude(trial, self._directory, failure, time.monotonic(), for_good=not interrupted)
        for job in trial.jobs:
            clear_requests(self._directory, job.run, self._driver)
        if interrupted and trial.status is Status.STOPPED:  # it goes on when the study does
            return
        if trial.number is None:
            if not self._journal.concluded(trial.name):
                self._journal.conclude(trial.name, str(trial.status), trial.reason)
        elif trial.number in self._open:
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
        """The Fisher-drift trial to follow: the best compromise so far, or the one that is named; None without any."""
        follow = self._followed(baseline)
        finished = [
            trial
            for trial in self._ledger.trials
            if trial.status is Status.COMPLETED and trial.jobs[0].spec.freeze.policy == "fisher_drift"
        ]
        if follow is not None:
            return next((trial for trial in finished if any(job.run == follow for job in trial.jobs)), None)
        values = {trial.name: self._values[trial.name] for trial in finished if trial.name in self._values}
        directions = [objective.direction for objective in self._spec.objectives]
        best = compromise(values, directions) if values else None
        return next((trial for trial in finished if trial.name == best), None)

    def _followed(self, baseline: BaselineSpec) -> str | None:
        """The run that a baseline with policy random_matched is told to follow."""
        follow = baseline.set.get("freeze.follow", self._spec.freeze.follow)
        return None if follow is None else str(follow)

    def _skip(self, baseline: BaselineSpec) -> None:
        follow = self._followed(baseline)
        what = f"run {follow} of this study with policy fisher_drift" if follow else "run with policy fisher_drift"
        self._ledger.warn(f"baseline {baseline.name} was skipped: no {what} completed, so there is no schedule to follow")
