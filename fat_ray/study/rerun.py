"""A recorded run once more, from its resolved specification, and whether it came out as before."""

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fat_ray.errors import InputError, RunFailedError
from fat_ray.events import RunEnd, RunStart, Status
from fat_ray.records.manifest import create_study, read_manifest, read_study
from fat_ray.records.reader import read_table, run_end, run_start
from fat_ray.replay.recording import spec_of
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import RunSpec
from fat_ray.study.likeness import Difference, differences, environment_changes
from fat_ray.study.space import with_params
from fat_ray.study.verdict import record_end


@dataclass(frozen=True)
class Rerun:
    """A run beside its repetition.

    Attributes:
        run: Its id.
        steps: Steps that were compared.
        rows: Rows that were compared, by table.
        differences: What differs, in the order of the steps.
        environment: Versions and facts about the machine that differ: name, as recorded, now.
        notes: What else a reader must know.
    """

    run: str
    steps: int
    rows: Mapping[str, int]
    differences: Sequence[Difference]
    environment: Sequence[tuple[str, Any, Any]]
    notes: Sequence[str]

    @property
    def is_equal(self) -> bool:
        """Whether the repetition is equal to the bit, as far as both go."""
        return not self.differences


def rerun(directory: Path, run: str, out: Path | None = None, *, quiet: bool = False, command: Sequence[str] = ()) -> Rerun:
    """Trains a recorded run again on this machine, without Ray, and compares.

    Args:
        directory: The study's directory.
        run: Id of the run.
        out: Directory in which the repetition's own is made, ``<study>-rerun-<run>``; None: it is thrown away.
        quiet: Print no progress to stderr.
        command: Arguments of the command line, for the manifest.

    Raises:
        InputError: The run cannot be repeated, or its data, task or `out` cannot be used; nothing was started.
        RecordError: There is no such run, or its records cannot be read.
        KeyboardInterrupt: After Ctrl-C.
    """
    start = run_start(directory, run)
    spec, steps = spec_of(start), read_table(directory, "steps", run).num_rows
    if not steps:
        raise InputError(f"run {run} did no step: there is nothing to compare its repetition with")
    if spec.freeze.policy == "random_matched" and start.follow is None:
        raise InputError(f"run {run} followed a schedule that its records do not hold, as those older than 1.2: it cannot be repeated")
    _check(spec, start)
    with _place(directory, start, spec, out, command) as target:
        end = _train(_job(start, spec, target, kept=out is not None), quiet=quiet)
        found, rows = differences(directory, target, run, steps)
        found += _other_ends(directory, run, end)
        return Rerun(run, steps, rows, found, environment_changes(directory, target, run), _notes(directory, run, end))


def _check(spec: RunSpec, start: RunStart) -> None:
    from fat_ray.freeze.policies import check_policy
    from fat_ray.tasks.registry import check_task

    model = check_task(spec.task)
    if start.follow is None:
        check_policy(model, spec, spec.train.steps)


@contextmanager
def _place(directory: Path, start: RunStart, spec: RunSpec, out: Path | None, command: Sequence[str]) -> Iterator[Path]:
    """A study's directory with the one run."""
    if out is not None:
        target = out / f"{start.study}-rerun-{start.run}"
        yield _made(directory, start, spec, target, command)
        return
    with tempfile.TemporaryDirectory(prefix="fat_ray-rerun-") as scratch:
        yield _made(directory, start, spec, Path(scratch) / "study", command)


def _made(directory: Path, start: RunStart, spec: RunSpec, target: Path, command: Sequence[str]) -> Path:
    study = read_study(read_manifest(directory))
    alone = {"search": {}, "baselines": [], "seeds": [start.seed], "budget": study.budget.model_copy(update={"trials": 1})}
    changed = {name: getattr(spec, name) for name in RunSpec.model_fields}
    create_study(target, study.model_copy(update={**alone, **changed}), "", command=command)
    return target.absolute()


def _job(start: RunStart, spec: RunSpec, target: Path, *, kept: bool) -> RunJob:
    """What was run; checkpoints, which change nothing that is computed, only where the repetition is kept."""
    told = {name: getattr(start, name) for name in ("study", "run", "trial", "seed", "role", "label", "params", "follow")}
    return RunJob(**told, spec=spec if kept else with_params(spec, {"train.checkpoint.every": 0}), directory=str(target))


def _train(job: RunJob, *, quiet: bool) -> RunEnd:
    """Trains, and says how far it is; a run that breaks is recorded as failed."""
    from fat_ray.train.local import run_local

    def report(metrics: Mapping[str, float]) -> None:
        if not quiet:
            sys.stderr.write(f"{job.run}: step {metrics['step']:.0f}/{job.spec.train.steps}\n")

    try:
        return run_local(job, report)
    except RunFailedError as error:
        target = Path(job.directory)
        return run_end(target, job.run) or record_end(job, target, Status.FAILED, str(error))


def _other_ends(directory: Path, run: str, end: RunEnd) -> list[Difference]:
    """Whether the run ends otherwise, where it was left to end by itself."""
    before = run_end(directory, run)
    if before is None or before.status not in (Status.COMPLETED, Status.DIVERGED) or before.status is end.status:
        return []
    return [Difference("ends", "status", {}, str(before.status), str(end.status), 1, 1)]


def _notes(directory: Path, run: str, end: RunEnd) -> list[str]:
    before, notes = run_end(directory, run), []
    if before is None or before.steps < end.steps:
        status = "had not ended yet or was killed" if before is None else f"ended as {before.status}, after {before.steps} steps"
        notes.append(f"the recorded run {status}; its repetition was compared with what there is")
    if end.reason:
        notes.append(f"the repetition ended early: {end.reason}")
    resumed = [row["note"] for row in read_table(directory, "resumptions", run).to_pylist()]
    return notes + [f"the recorded run was resumed: {note}" for note in resumed if note]


def as_text(found: Rerun) -> str:
    """For people: equal to the bit, or what differs, first things first."""
    rows = ", ".join(f"{table} {number}" for table, number in found.rows.items() if number)
    if found.is_equal:
        lines = [f"{found.run} came out equal to the bit over {found.steps} steps; rows compared: {rows}"]
    else:
        lines = [f"{found.run} came out otherwise than it was recorded ({found.steps} steps compared):"]
        lines += [f"  {difference}" for difference in found.differences]
    if found.environment:
        lines.append("Different from when it was recorded:")
        lines += [f"  {name}: {before!r} recorded, {now!r} now" for name, before, now in found.environment]
    elif not found.is_equal:
        lines.append("Versions and kind of machine are as recorded: the task, its data or the code are others, or chance is at work.")
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _plain(value: Any) -> Any:
    """A value that JSON can hold: ``nan`` and ``inf`` as texts."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_json(found: Rerun) -> str:
    """The same for programs; docs/replay.md describes the keys."""
    document = {
        "format": "fat_ray.rerun",
        "version": 1,
        "run": found.run,
        "equal": found.is_equal,
        "steps": found.steps,
        "rows": dict(found.rows),
        "differences": [
            {**asdict(each), "recorded": _plain(each.recorded), "repeated": _plain(each.repeated)} for each in found.differences
        ],
        "environment": [{"name": name, "recorded": before, "repeated": now} for name, before, now in found.environment],
        "notes": list(found.notes),
    }
    return json.dumps(document, indent=2, allow_nan=False)
