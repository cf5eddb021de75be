"""What runs next: the baseline without freezing, the trials that Optuna suggests, and last the matched random baseline.

Optuna's journal holds the search: a trial is COMPLETE only when all its runs completed with finite objectives, PRUNED when the
scheduler stopped it, and FAIL with the reason otherwise. Baselines are not in it.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fat_ray.errors import SpecError
from fat_ray.events import RunEnd, Status
from fat_ray.records.redact import scrub
from fat_ray.rules import compromise
from fat_ray.spec.study import SamplerSpec, StudySpec, as_json, num_search_trials
from fat_ray.study.jobs import full_fine_tuning, matched_random, search_trial
from fat_ray.study.ledger import Ledger, Trial
from fat_ray.study.space import optuna_space
from fat_ray.study.verdict import COSTS, conclude, objective_values

JOURNAL = "optuna.journal"


def build_sampler(spec: SamplerSpec) -> BaseSampler:
    """The sampler, seeded: one trial at a time, the same study suggests the same settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match spec.name:
            case "tpe":
                return TPESampler(n_startup_trials=spec.startup_trials, multivariate=True, group=True, seed=spec.seed)
            case "random":
                return RandomSampler(seed=spec.seed)
            case "qmc":
                return QMCSampler(scramble=True, seed=spec.seed, warn_independent_sampling=False)
            case "nsga2":
                return NSGAIISampler(seed=spec.seed)


def open_journal(spec: StudySpec, directory: Path) -> optuna.Study:
    """A new Optuna study in the study's directory; only the driver writes to it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=spec.name,
        storage=JournalStorage(JournalFileBackend(str(directory / JOURNAL))),
        sampler=build_sampler(spec.sampler),
        directions=[objective.direction for objective in spec.objectives],
    )


class StudySearch(Searcher):  # type: ignore[misc]
    """Hands out trials to Ray Tune and concludes them from their records.

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
        self._study = open_journal(spec, directory)
        self._space = optuna_space(spec.search)
        self._asked: dict[str, optuna.trial.Trial] = {}
        self._values: dict[str, list[float]] = {}
        self._has_refused = False
        self._plan = self._sequence()

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of the search, which is never read: the journal and the records are the truth."""
        return {**self.__dict__, "_plan": None, "_asked": {}}

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
        if "step" in result and trial.seeds_done == 0:
            trial.step = int(result["step"])
            trial.metrics = {key: value for key, value in result.items() if key.startswith("val/") or key in COSTS}
            self._report(trial)
        elif "seeds_done" in result:
            trial.seeds_done = int(result["seeds_done"])
            trial.step = 0 if trial.seeds_done < len(trial.jobs) else trial.step

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

    def _sequence(self) -> Iterator[Trial | None]:
        """Trials in their order; None while one has to wait for others to end."""
        if "none" in self._spec.baselines:
            yield full_fine_tuning(self._spec, self._directory)
        yield from self._searched()
        if "random_matched" in self._spec.baselines:
            while any(not trial.is_baseline for trial in self._ledger.live()):
                yield None
            leader = self._leader()
            if leader is not None:
                yield matched_random(self._spec, self._directory, leader)

    def _searched(self) -> Iterator[Trial]:
        """The trials that Optuna suggests; a suggestion that is refused counts as one, so that the search ends whatever the space is."""
        total, refused = num_search_trials(as_json(self._spec)), 0
        for _ in range(total):
            trial = self._ask()
            if trial is not None:
                yield trial
                continue
            refused += 1
            self._ledger.total -= 1
        if refused == total:
            self._ledger.notes.append(f"the search ran no trial: all {total} suggested settings are combinations that do not go together")

    def _ask(self) -> Trial | None:
        """The next suggestion as a trial; None if its values do not go together, as the journal and, once, the user are told."""
        asked = self._study.ask(self._space)
        name = f"t{asked.number:04d}"
        asked.set_user_attr("runs", [f"{name}-s{seed}" for seed in self._spec.seeds])
        try:
            trial = search_trial(self._spec, self._directory, asked.number, asked.params)
        except SpecError as error:
            self._refuse(asked, str(error))
            return None
        self._asked[name] = asked
        return trial

    def _refuse(self, asked: optuna.trial.Trial, reason: str) -> None:
        self._fail(asked, reason)
        if not self._has_refused:
            self._has_refused = True
            chosen = ", ".join(f"{key} = {value}" for key, value in asked.params.items())
            why = " ".join(reason.split())
            self._ledger.notes.append(
                f"suggested settings that do not go together are not run and use up the budget; first {chosen}: {why}"
            )

    def _report(self, trial: Trial) -> None:
        asked, metric = self._asked.get(trial.name), self._spec.objectives[0].metric
        value = trial.metrics.get(metric, math.nan)
        if asked is not None and len(self._spec.objectives) == 1 and math.isfinite(value):
            asked.report(value, trial.step)

    def _conclude(self, trial: Trial, failure: str | None) -> None:
        ends = conclude(trial, self._directory, failure, time.monotonic())
        if trial.name in self._asked:
            self._tell(self._asked.pop(trial.name), trial, ends)

    def _tell(self, asked: optuna.trial.Trial, trial: Trial, ends: Sequence[RunEnd]) -> None:
        if trial.status is Status.PRUNED:
            self._study.tell(asked, state=TrialState.PRUNED)
            return
        if trial.status is not Status.COMPLETED:
            self._fail(asked, f"{trial.status}: {trial.reason}")
            return
        try:
            values = objective_values(self._spec.objectives, ends)
        except ValueError as error:
            trial.status, trial.reason = Status.FAILED, str(error)
            self._fail(asked, trial.reason)
            return
        self._values[trial.name] = values
        self._study.tell(asked, values)

    def _fail(self, asked: optuna.trial.Trial, reason: str) -> None:
        asked.set_user_attr("reason", scrub(reason))
        self._study.tell(asked, state=TrialState.FAIL)

    def _leader(self) -> Trial | None:
        """The finished trial of Fisher drift with the best compromise, or the one that the study names; None, with a note, without any."""
        follow = self._spec.freeze.follow
        finished = [
            trial
            for trial in self._ledger.trials
            if trial.name in self._values
            and trial.jobs[0].spec.freeze.policy == "fisher_drift"
            and (follow is None or any(job.run == follow for job in trial.jobs))
        ]
        if not finished:
            what = f"run {follow} of this study" if follow else "run with policy fisher_drift"
            self._ledger.notes.append(f"baseline random_matched was skipped: no {what} completed, so there is no schedule to follow")
            return None
        by_name = {trial.name: trial for trial in finished}
        directions = [objective.direction for objective in self._spec.objectives]
        return by_name[compromise({name: self._values[name] for name in by_name}, directions)]
