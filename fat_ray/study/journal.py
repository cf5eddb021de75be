"""The journal: Optuna's storage in the study's directory, which optuna-dashboard opens. Only the driver writes it."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from fat_ray.records.redact import scrub
from fat_ray.spec.study import StudySpec
from fat_ray.study.sampler import build_sampler
from fat_ray.study.space import suggest_params
from fat_ray.study.warm_start import WarmStart

JOURNAL = "optuna.journal"


class Journal:
    """Trials by their number: asked for, reported, and told how they ended.

    Nothing about a trial is remembered but in the file, so that a driver that opens it after another was killed goes on as that one would.

    Args:
        spec: The study.
        directory: Its directory, on a file system that only the driver writes the journal of; not one shared by NFS.

    Attributes:
        warm_start: What the first trials are, where no sampler chooses them.
    """

    def __init__(self, spec: StudySpec, directory: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = directory / JOURNAL
        _mend(path)
        self._spec, self.warm_start = spec, WarmStart(spec, directory)
        self._storage = JournalStorage(JournalFileBackend(str(path)))
        self._study = optuna.create_study(
            study_name=spec.name,
            storage=self._storage,
            directions=[objective.direction for objective in spec.objectives],
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names([objective.metric for objective in spec.objectives])

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials that were asked for, by number."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]

    @property
    def outcomes(self) -> list[Sequence[float] | None]:
        """Of the trials that completed or were pruned, as they ended: their values; None for pruned ones."""
        ended = [trial for trial in self.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
        return [trial.values if trial.state is TrialState.COMPLETE else None for trial in ended]

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Number and parameters of the next trial; None when a grid is used up."""
        before = self.trials
        sampler = build_sampler(self._spec, len(before), [trial.params for trial in before])
        if sampler is None:
            return None
        self._study.sampler = sampler
        start = self.warm_start.setting(len(before))
        if start is not None and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # a killed driver leaves one
            self._study.enqueue_trial(start.params, {"foretold_mean_active_fraction": start.foretold})
        asked = self._study.ask()
        asked.set_user_attr("runs", [f"t{asked.number:04d}-s{seed}" for seed in self._spec.seeds])
        return asked.number, suggest_params(asked, self._spec.search, self._spec.run)

    def report(self, number: int, step: int, value: float) -> None:
        """Notes a value on the way, of a search with one objective."""
        self._storage.set_trial_intermediate_value(self._id(number), step, value)

    def complete(self, number: int, values: Sequence[float], attributes: Mapping[str, Any]) -> None:
        """The trial completed; attributes are shown beside it."""
        self._tell(number, TrialState.COMPLETE, attributes, values)

    def prune(self, number: int, reason: str) -> None:
        """The trial was stopped for being hopeless; it has no values."""
        self._tell(number, TrialState.PRUNED, {"reason": scrub(reason)})

    def fail(self, number: int, reason: str) -> None:
        """The trial has no result, and nothing may be concluded from it."""
        self._tell(number, TrialState.FAIL, {"reason": scrub(reason)})

    def _tell(self, number: int, state: TrialState, attributes: Mapping[str, Any], values: Sequence[float] | None = None) -> None:
        trial_id = self._id(number)
        for key, value in attributes.items():
            self._storage.set_trial_user_attr(trial_id, key, value)
        # Not Study.tell: it would take the last value reported of a pruned trial as its result.
        self._storage.set_trial_state_values(trial_id, state, values)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._storage.get_study_id_from_name(self._spec.name), number)


def _mend(path: Path) -> None:
    """Drops a last line that a driver killed in the middle of a write left behind: it said nothing yet, but would spoil the next line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        written = file.read()
        if not written.endswith(b"\n"):
            file.truncate(written.rfind(b"\n") + 1)
