"""Mirrors records to Weights & Biases, from the driver: one W&B run per trial and seed.

The records are the truth: the mirror reads nothing else, and its failure stops nothing.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fat_ray.errors import OutputError
from fat_ray.events import RunStart, Status
from fat_ray.records.manifest import check_writable, read_manifest
from fat_ray.records.metrics import AXIS, TABLES_SHOWN, metric_rows, summary_values
from fat_ray.records.reader import parts, read_part, read_table, run_end, run_start
from fat_ray.records.redact import scrub
from fat_ray.records.schema import TABLES
from fat_ray.spec.study import WandbSpec

log = logging.getLogger(__name__)

_INIT_TIMEOUT_S = 30.0
_FINISH_TIMEOUT_S = 60.0
_SCHEDULE_COLUMNS = ("step", "event", "group", "layer", "kind", "elements")


@dataclass
class _Live:
    """A W&B run that is being written: its handle, how it started, the parts it holds, the last step of each table and of all shown."""

    handle: Any
    start: RunStart
    mirrored: set[Path] = field(default_factory=set)
    shown: dict[str, int] = field(default_factory=dict)
    step: int = 0


class WandbMirror:
    """The W&B side of one study. Whatever goes wrong in W&B ends the mirror with one warning, never a run.

    Args:
        directory: The study's directory; W&B's own files go to its ``wandb/``.
        spec: Mode, project and entity. With mode ``disabled`` nothing is done and wandb is not imported.
    """

    def __init__(self, directory: str | Path, spec: WandbSpec) -> None:
        self._directory = Path(directory).absolute()
        self._spec = spec
        self._live: dict[str, _Live] = {}
        self._finished: set[str] = set()
        self._off = spec.mode == "disabled"

    def check_writable(self) -> None:
        """Makes sure, before a study starts, that the mirror can write, and that mode ``online`` finds credentials. Reaches no network.

        Raises:
            OutputError: ``wandb/`` cannot be written (W&B would silently write elsewhere), or there are no credentials.
        """
        if self._off:
            return
        check_writable(self._directory / "wandb")
        if self._spec.mode == "online":
            with _files_below(self._directory):
                _check_credentials()

    def begin_anew(self, run: str) -> None:
        """Forgets that a run has been mirrored: all of it is mirrored again, from the records, under the same id."""
        self._mark(run).unlink(missing_ok=True)

    def catch_up(self, runs: Iterable[str]) -> None:
        """Mirrors runs that have ended, but for those that have been mirrored to their end: a driver may have been killed before it was."""
        for run in runs:
            self.finish(run)

    def _mark(self, run: str) -> Path:
        """A file that is there when all of a run has been mirrored."""
        return self._directory / "wandb" / "finished" / run

    def _is_finished(self, run: str) -> bool:
        return run in self._finished or self._mark(run).exists()

    def _id(self, run: str) -> str:
        manifest = read_manifest(self._directory)
        return f"{manifest.name}-{run}-{manifest.launch}"

    def advance(self, run: str) -> None:
        """Mirrors what the run's records gained since the last call; a run that has not started yet is left alone."""
        self._attempt(self._advance, run)

    def finish(self, run: str) -> None:
        """Mirrors the rest of a run with its freeze schedule, summary and status, and closes its W&B run."""
        self._attempt(self._finish, run)

    def close(self) -> None:
        """Finishes the runs that are still open."""
        for run in list(self._live):
            self.finish(run)

    def _attempt(self, action: Callable[[str], None], run: str) -> None:
        if self._off or self._is_finished(run):
            return
        try:
            with _files_below(self._directory):
                action(run)
        except Exception as error:  # noqa: BLE001 no failure of a mirror may stop a run
            self._off = True
            reason = scrub(str(error).partition("\n")[0]) or type(error).__name__
            log.warning("W&B mirror off since run %s: %s. The records are complete without it.", run, reason)

    def _advance(self, run: str) -> None:
        if run not in self._live:
            if not parts(self._directory, "runs", run):
                return
            self._live[run] = self._open(run)
        live = self._live[run]
        for row in metric_rows(_new_rows(self._directory, run, live), live.start.total_elements):
            live.handle.log(_as_wandb(row))
            live.step = row[AXIS]

    def _open(self, run: str) -> _Live:
        import wandb

        # What a killed driver has mirrored. Online, W&B itself replaces a run by one that is begun under the same id.
        for left in (self._directory / "wandb").glob(f"offline-run-*-{self._id(run)}"):
            shutil.rmtree(left, ignore_errors=True)
        start = run_start(self._directory, run)
        handle = wandb.init(
            project=self._spec.project,
            entity=self._spec.entity,
            dir=self._directory,
            mode=self._spec.mode,
            group=start.study,
            job_type=start.role,
            tags=[tag for tag in (str(start.spec["freeze"]["policy"]), start.label) if tag],
            id=self._id(run),
            name=run,
            config=run_config(start),
            reinit="create_new",
            settings=_settings(wandb),
        )
        handle.define_metric(AXIS)
        handle.define_metric("*", step_metric=AXIS)
        return _Live(handle, start)

    def _finish(self, run: str) -> None:
        self._advance(run)
        live = self._live.pop(run, None)
        if live is None:
            return
        import wandb

        self._finished.add(run)
        end = run_end(self._directory, run)
        failed = end is None or end.status in (Status.FAILED, Status.DIVERGED)
        try:
            live.handle.summary.update(summary_values(end))
            schedule = wandb.Table(columns=list(_SCHEDULE_COLUMNS), data=schedule_rows(self._directory, run, live.start))
            live.handle.log({"freeze/schedule": schedule, AXIS: live.step})
        finally:
            live.handle.finish(exit_code=int(failed))
        self._mark(run).parent.mkdir(exist_ok=True)
        self._mark(run).touch()


def run_config(start: RunStart) -> dict[str, Any]:
    """The configuration of a W&B run: `RunStart` without the groups. Parameters are nested, since W&B reads the dots of a key as a path."""
    names = ("study", "run", "trial", "seed", "role", "label", "spec", "environment", "total_elements")
    config = {name: getattr(start, name) for name in names}
    return {**config, "num_groups": len(start.groups), "params": _nested(start.params)}


def schedule_rows(directory: Path, run: str, start: RunStart) -> list[list[Any]]:
    """The freeze schedule of a run: step, event, group, layer, kind, elements of each frozen group, in order."""
    rows = read_table(directory, "freezes", run).to_pylist()
    groups = [start.groups[row["group"]] for row in rows]
    return [
        [row["step"], row["event"], group.name, group.layer, group.kind, row["elements"]] for row, group in zip(rows, groups, strict=True)
    ]


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, last = path.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested


def _new_rows(directory: Path, run: str, live: _Live) -> dict[str, pa.Table]:
    """What the records gained; steps that were done again after an interruption are known already."""
    rows = {}
    for table in TABLES_SHOWN:
        new = [part for part in parts(directory, table, run) if part not in live.mirrored]
        found = pa.concat_tables([TABLES[table].empty_table(), *(read_part(part, table, run) for part in new)])
        rows[table] = found.filter(pc.greater(found["step"], live.shown.get(table, -1)))
        live.mirrored.update(new)
        live.shown[table] = max([live.shown.get(table, -1), *rows[table]["step"].to_pylist()])
    return rows


def _as_wandb(row: Mapping[str, Any]) -> dict[str, Any]:
    import wandb

    return {name: wandb.Histogram(np_histogram=value) if name == "drift/histogram" else value for name, value in row.items()}


def _settings(wandb: Any) -> Any:
    # Nothing about machine, user, repository or console: what matters is in the configuration, chosen by environment.capture.
    return wandb.Settings(
        host="",
        console="off",
        silent=True,
        symlink=False,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=_INIT_TIMEOUT_S,
        finish_timeout=_FINISH_TIMEOUT_S,
        # The default loses up to 15 s of an offline run when the driver is killed.
        x_transaction_log_flush_interval=1,
    )


def _check_credentials() -> None:
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True, mode="online"))
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise OutputError(f"wandb.mode = online: the W&B credentials cannot be used: {scrub(str(error))}") from error
    if not found:
        raise OutputError("wandb.mode = online needs credentials: run `wandb login`, set WANDB_API_KEY, or use --wandb offline")


@contextmanager
def _files_below(directory: Path) -> Iterator[None]:
    # W&B stages tables and logs in the home directory otherwise, which a sync from elsewhere would not find.
    wanted = {name: str(directory / "wandb" / "files") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
