"""The journal: Optuna's storage in the study's directory, which optuna-dashboard opens. Only the driver writes it."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation  # Optuna has no public name for it; constraints.txt pins the version
from optuna.trial import FrozenTrial, TrialState

from fat_ray.records.redact import scrub
from fat_ray.spec.study import StudySpec
from fat_ray.study.sampler import build_sampler
from fat_ray.study.space import suggest_params
from fat_ray.study.warm_start import WarmStart

JOURNAL = "optuna.journal"
_ASKED = "runs"
"""User attribute of a trial that is there once all its parameters are."""
_BASELINE = "baseline "
"""User attributes of the study: how a baseline ended."""


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
        self._study = self._open()

    def _open(self) -> optuna.Study:
        """The study, which is made if it is not there; nothing is written if it is."""
        spec = self._spec
        if not any(study.study_name == spec.name for study in self._storage.get_all_studies()):
            directions = [objective.direction for objective in spec.objectives]
            optuna.create_study(study_name=spec.name, storage=self._storage, directions=directions)
        study = optuna.load_study(study_name=spec.name, storage=self._storage)
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([objective.metric for objective in spec.objectives])
        return study

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

    @property
    def has_more(self) -> bool:
        """Whether `ask` would give a trial; it does not when a grid is used up."""
        return self._sampler() is not None

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Number and parameters of the next trial; None when a grid is used up."""
        sampler = self._sampler()
        if sampler is None:
            return None
        self._study.sampler = sampler
        start = self.warm_start.setting(len(self.trials))
        if start is not None and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # a killed driver leaves one
            self._study.enqueue_trial(start.params, {"foretold_mean_active_fraction": start.foretold})
        asked = self._study.ask()
        params = suggest_params(asked, self._spec.search, self._spec.run)
        asked.set_user_attr(_ASKED, [f"t{asked.number:04d}-s{seed}" for seed in self._spec.seeds])  # last: see `_mend`
        return asked.number, params

    def _sampler(self) -> BaseSampler | None:
        before = self.trials
        return build_sampler(self._spec, len(before), [trial.params for trial in before])

    def report(self, number: int, step: int, value: float) -> None:
        """Notes a value on the way, of a search with one objective; writes nothing if it is there already."""
        if self.trials[number].intermediate_values.get(step) != value:
            self._storage.set_trial_intermediate_value(self._id(number), step, value)

    def conclude(self, baseline: str, status: str, reason: str) -> None:
        """Notes how a baseline ended, which is no trial of the search."""
        self._study.set_user_attr(_BASELINE + baseline, {"status": status, "reason": scrub(reason)})

    def concluded(self, baseline: str) -> bool:
        """Whether it was noted how the baseline ended."""
        return _BASELINE + baseline in self._study.user_attrs

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
    """Drops what a driver that was killed in the middle of a write left behind.

    That is a last line without its end, and a trial that was being asked for: all its lines stand at the end of the file, and without the
    last of them some of its parameters may be missing. It is asked for again, of the same sampler, and so suggested the same.
    """
    Path(f"{path}.lock").unlink(missing_ok=True)  # Optuna's own, which would be waited for; the study's lock is held
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.truncate(_whole(file.read()))


def _whole(written: bytes) -> int:
    """Bytes up to the end of the last line, or of the last trial that was asked for completely."""
    end = written.rfind(b"\n") + 1
    asked = end
    for line in reversed(written[:end].splitlines(keepends=True)):
        entry = json.loads(line)
        asked -= len(line)
        if entry["op_code"] == JournalOperation.SET_TRIAL_USER_ATTR and _ASKED in entry["user_attr"]:
            return end
        if entry["op_code"] == JournalOperation.CREATE_TRIAL:
            return asked
    return end
