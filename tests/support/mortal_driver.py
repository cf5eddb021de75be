"""A driver that dies at any write, as a killed process does, and what a study that was gone on with must have in common with another."""

import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from ray.tune.search import Searcher

from fat_ray.engine.vault import checkpoints
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.records.reader import read_table, runs
from fat_ray.records.schema import TABLES
from fat_ray.spec.study import StudySpec, as_json, num_trials
from fat_ray.study import trial as trial_module
from fat_ray.study.journal import JOURNAL
from fat_ray.study.ledger import Ledger
from fat_ray.study.retention import prune_checkpoints
from fat_ray.study.tune import Course
from fat_ray.train import worker
from fat_ray.train.lease import sole_driver
from fat_ray.train.local import run_local
from fat_ray.train.stop import RequestPoll
from tests.support.interruption import CLOCKS, Killed


class Writes:
    """Counts what is made durable: files that get their name or lose it, and lines of the journal. Dies when told to, and stays dead."""

    def __init__(self) -> None:
        self.count = 0
        self.kinds: list[str] = []
        self._last: int | None = None
        self._torn = False

    def die_before(self, number: int | None, *, torn: bool = False) -> None:
        """From now on; None: never."""
        self.count, self.kinds, self._last, self._torn = 0, [], number, torn

    def note(self, kind: str, tear: Callable[[], None] = lambda: None) -> None:
        if self._last is not None and self.count >= self._last:
            if self.count == self._last and self._torn:
                tear()
            self.count += 1
            raise Killed
        self.count += 1
        self.kinds.append(kind)


@contextmanager
def mortal(patch: pytest.MonkeyPatch) -> Iterator[Writes]:
    """Within, all that a driver and its runs write is counted."""
    writes = Writes()
    for name in ("replace", "rename", "unlink"):
        original = getattr(Path, name)

        def counted(path: Path, *args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            if name != "unlink" or path.exists():
                writes.note(name)
            return original(path, *args, **kwargs)

        patch.setattr(Path, name, counted)
    append, remove = JournalFileBackend.append_logs, shutil.rmtree

    def counted_append(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        def tear() -> None:
            with Path(backend._file_path).open("ab") as file:
                file.write(b'{"op_code":')

        writes.note("journal", tear)
        append(backend, logs)

    def counted_remove(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).exists():
            writes.note("rmtree")
        remove(path, *args, **kwargs)

    patch.setattr(JournalFileBackend, "append_logs", counted_append)
    patch.setattr(shutil, "rmtree", counted_remove)
    yield writes


def live(spec: StudySpec, directory: Path, patch: pytest.MonkeyPatch) -> Ledger:
    """One life of a driver that plays Tune with one slot and trains in this process."""
    directory.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(num_trials(as_json(spec)))
    with sole_driver(directory):
        course = Course(spec, directory, ledger)
        patch.setattr(trial_module, "fit", lambda job, report, **_: run_local(job, report))
        patch.setattr(worker, "RequestPoll", partial(RequestPoll, interval_s=0))
        number = 0
        while isinstance(config := course.search.suggest(trial_id := f"id{number}"), dict):
            tune_trial = _TuneTrial(trial_id)

            def report(result: dict[str, Any], tune_trial: Any = tune_trial) -> None:
                course.scheduler.on_trial_result(None, tune_trial, result)
                course.search.on_trial_result(tune_trial.trial_id, result)

            patch.setattr(trial_module.tune, "report", report)
            trial_module.run_trial({**config, "placement_timeout_s": 1.0})
            course.search.on_trial_complete(trial_id, {})
            prune_checkpoints(directory, spec, ledger)
            number += 1
        assert config == Searcher.FINISHED
        course.search.close()
        course.tidy_up(WandbMirror(directory, spec.wandb.model_copy(update={"mode": "disabled"})))
    return ledger


class _TuneTrial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def all_of(directory: Path, but: Container[str] = ()) -> dict[str, Any]:
    """All that a study leaves, but for what a clock or a meter of memory says, these columns, and how often it was interrupted."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(directory / JOURNAL)))
    [summary] = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    trials = [
        (trial.number, trial.state.name, trial.params, trial.values, trial.intermediate_values, trial.user_attrs) for trial in study.trials
    ]
    records = {(run, table): _rows(directory, run, table, but) for run in runs(directory) for table in TABLES if table != "resumptions"}
    weights = {
        run: (checkpoints(directory, run)[0] / "model.safetensors").read_bytes() for run in runs(directory) if checkpoints(directory, run)
    }
    return {"trials": trials, "baselines": study.user_attrs, "records": records, "weights": weights}


def _rows(directory: Path, run: str, table: str, but: Container[str]) -> list[dict[str, str]]:
    rows = read_table(directory, table, run).to_pylist()
    return [{name: repr(value) for name, value in row.items() if name not in CLOCKS and name not in but} for row in rows]
