"""Writes W&B runs from the records of a study: one per trial and seed, and one that sums up the study. Runs in a process of its own.

The records are the truth: nothing else is read.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from fat_ray.events import RunStart, Status
from fat_ray.records.manifest import read_manifest
from fat_ray.records.metrics import AXIS, TABLES_SHOWN, metric_name, metric_rows, summary_values
from fat_ray.records.mirror import content
from fat_ray.records.mirror.access import Mode
from fat_ray.records.mirror.marks import STUDY, Marks, offline_files
from fat_ray.records.mirror.picture import schedule_grid, schedule_picture
from fat_ray.records.reader import parts, read_part, read_table, run_end, run_start
from fat_ray.records.schema import TABLES
from fat_ray.spec.study import WandbSpec

INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 60.0
FLUSH_S = 0.5
"""How long a row may lie in memory before it is in the offline file; W&B's default loses up to 15 s when processes are killed."""


@dataclass
class _Live:
    """A W&B run that is being written: its handle, how it started, the parts it holds, the last step of each table and of all shown.

    Attributes:
        names: Names of metrics that had to be changed, with split and metric.
        rows: How many were logged.
    """

    handle: Any
    start: RunStart
    mirrored: set[Path] = field(default_factory=set)
    shown: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    step: int = 0
    rows: int = 0


class Writer:
    """The W&B side of one study.

    Args:
        directory: The study's directory.
        spec: Mode (not ``auto``), project and entity.
        scratch: A directory for files on their way.
    """

    def __init__(self, directory: Path, spec: WandbSpec, scratch: Path) -> None:
        self._directory, self._spec, self._scratch = directory, spec, scratch
        self._manifest = read_manifest(directory)
        self._marks = Marks(directory, spec)
        self._live: dict[str, _Live] = {}

    def advance(self, run: str) -> str:
        """Mirrors what the run's records gained since the last call; a run that has not started yet is left alone.

        Returns:
            Where the run can be looked at, if it was begun now and online; else nothing.
        """
        begun = ""
        if run not in self._live:
            if not parts(self._directory, "runs", run):
                return ""
            self._live[run] = self._open(run)
            begun = self._live[run].handle.url or ""
        live = self._live[run]
        tables = _new_rows(self._directory, run, live)
        live.names.update(_changed_names(tables["evals"]))
        for row in metric_rows(tables, live.start.total_elements):
            live.handle.log(_as_wandb(row))
            live.step, live.rows = row[AXIS], live.rows + 1
        return begun

    def finish(self, run: str) -> tuple[int, str]:
        """Mirrors the rest of a run with its freeze schedule, summary, files and status, and closes its W&B run.

        Returns:
            Rows that were logged, and where the run can be looked at; nothing of one that has not started.

        Raises:
            TimeoutError: W&B did not take all of it in time.
        """
        self.advance(run)
        if run not in self._live:
            return 0, ""
        live, said = self._live.pop(run), content.fingerprint(self._directory, run)
        end = run_end(self._directory, run)
        failed = end is None or end.status in (Status.FAILED, Status.DIVERGED)
        try:
            live.handle.summary.update({**summary_values(end), content.NAMES: json.dumps(live.names)})
            if end is not None:
                live.handle.summary[content.END] = content.end_text(end)
            self._log_schedule(run, live)
            files = self._scratch / "artifact"
            content.write_run_files(self._directory, run, live.start, files)
            self._log_artifact(live.handle, f"{live.start.study}-{run}", "records", [files])
        finally:
            shutil.rmtree(self._scratch / "artifact", ignore_errors=True)
            live.handle.finish(exit_code=int(failed))
        url = live.handle.url or ""
        self._marks.set(run, said, url, self._id(run))
        return live.rows, url

    def sum_up(self, document: Mapping[str, Any]) -> str:
        """Writes the W&B run about the study as a whole.

        Args:
            document: The study's picture as `fat_ray.view.document` tells it.

        Returns:
            Where it can be looked at.
        """
        import wandb

        name = content.study_run(self._manifest)
        handle = self._init(content.study_id(self._manifest), name, "study", ["study"], content.study_config(self._manifest))
        try:
            handle.summary.update(content.study_summary(document))
            tables = content.study_tables(document)
            handle.log({key: wandb.Table(columns=columns, data=rows) for key, (columns, rows) in tables.items()})
            self._log_artifact(handle, f"{self._manifest.name}-study", "study", content.study_files(self._directory))
        finally:
            handle.finish(exit_code=int(document["state"] == "failed"))
        url = handle.url or ""
        self._marks.set(STUDY, content.study_fingerprint(document), url, content.study_id(self._manifest))
        return url

    def _id(self, run: str) -> str:
        return content.run_id(self._manifest, run)

    def _open(self, run: str) -> _Live:
        start = run_start(self._directory, run)
        config = content.run_config(start, self._manifest)
        handle = self._init(self._id(run), run, start.role, content.tags(start), config)
        handle.define_metric(AXIS)
        handle.define_metric("*", step_metric=AXIS)
        return _Live(handle, start)

    def _init(self, identity: str, name: str, job_type: str, tags: list[str], config: dict[str, Any]) -> Any:
        import wandb

        if self._spec.mode == "offline":  # what an earlier process mirrored; online, W&B replaces a run that is begun under the same id
            for left in offline_files(self._directory, identity):
                shutil.rmtree(left.parent, ignore_errors=True)
        return wandb.init(
            project=self._spec.project,
            entity=self._spec.entity,
            dir=self._directory,
            mode=cast("Mode", self._spec.mode),
            group=self._manifest.name,
            job_type=job_type,
            tags=tags,
            id=identity,
            name=content.shortened(name, content.NAME_CHARACTERS),
            config=config,
            reinit="create_new",
            settings=_settings(wandb),
        )

    def _log_schedule(self, run: str, live: _Live) -> None:
        import wandb
        from PIL import Image

        schedule = wandb.Table(columns=list(content.SCHEDULE_COLUMNS), data=content.schedule_rows(self._directory, run, live.start))
        freezes, steps = read_table(self._directory, "freezes", run), read_table(self._directory, "steps", run)
        grid = schedule_grid(freezes, len(live.start.groups), pc.max(steps["step"]).as_py() + 1 if steps.num_rows else 0)
        caption = f"{grid.shape[0]} groups in network order x {grid.shape[1]} steps; yellow: trained, blue: frozen"
        picture = wandb.Image(Image.fromarray(schedule_picture(grid)), caption=caption)
        live.handle.log({"freeze/schedule": schedule, "freeze/picture": picture, AXIS: live.step})

    def _log_artifact(self, handle: Any, name: str, kind: str, paths: list[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(content.artifact_name(name), type=kind)
        for path in paths:
            artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
        handle.log_artifact(artifact)


def _changed_names(evals: pa.Table) -> dict[str, list[str]]:
    known = {(split, metric) for split, metric in zip(evals["split"].to_pylist(), evals["metric"].to_pylist(), strict=True)}
    names = {metric_name(f"{split}/{metric}"): [split, metric] for split, metric in known}
    return {name: pair for name, pair in names.items() if name != "/".join(pair)}


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
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=FLUSH_S,
    )
