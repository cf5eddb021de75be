"""Saves a run between two steps, and goes on from there: the run is then the one that was never interrupted, to the bit.

Every rank writes its own part, the first rank what is equal on all, and then the seal; all ranks load the same checkpoint, or none does.
`engine.vault` has the layout, `engine.snapshot` the files of the state of training; beside them ``state.json`` holds the job, the costs so
far and the position of the records.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fat_ray.engine.costs import Ledger
from fat_ray.engine.snapshot import read, write_rank, write_shared
from fat_ray.engine.step import Trainer
from fat_ray.engine.vault import (
    STATE,
    NewerCheckpointError,
    begin,
    check,
    checkpoint_path,
    checkpoints,
    prune,
    remove,
    seal,
    step_of,
    temporary_path,
)
from fat_ray.errors import InputError, RecordError
from fat_ray.fisher.reduce import all_sum, check_agreement, world
from fat_ray.records.files import explain
from fat_ray.spec.job import RunJob

log = logging.getLogger(__name__)

Position = Mapping[str, int]
"""Where the records of a run stand, see `records.sink.Sink.position`."""

_FREE = {f"train.{name}" for name in ("workers", "cpus_per_worker", "gpus_per_worker", "backend", "checkpoint", "retries")} | {
    "freeze.cache_prefix_bytes"
}
"""Fields of a run that may be others when it goes on."""


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says besides the state of training.

    Attributes:
        step: Optimizer steps that were done.
        world_size: Number of ranks that wrote it.
        ledger: Costs and metrics so far, see `engine.costs.Ledger.state`.
        records: Position of the records.
    """

    step: int
    world_size: int
    ledger: dict[str, Any]
    records: dict[str, int]


class Checkpoints:
    """The checkpoints of one run, as one of its ranks sees them. `save` and `restore` are called on all ranks.

    Args:
        job: The run.
        device: Where this rank trains, and where collectives run.
    """

    def __init__(self, job: RunJob, device: torch.device) -> None:
        self._job, self._device = job, device

    def is_due(self, done: int, *, asked: bool = False) -> bool:
        """Whether to save after so many steps: at the chosen ones, at the last, and when asked; never where checkpoints are not wanted."""
        train = self._job.spec.train
        every = train.evaluate_every if train.checkpoint.every is None else train.checkpoint.every
        return every > 0 and (asked or done % every == 0 or done == train.steps)

    def save(self, trainer: Trainer, ledger: Ledger, records: Position) -> None:
        """Saves the run after a step. What cannot be written is a warning, and training goes on: the checkpoint before it is still there.

        Args:
            trainer: All that trains.
            ledger: Costs so far.
            records: Position of the records, when all that happened so far is visible in them.
        """
        target = checkpoint_path(self._job.directory, self._job.run, trainer.freezer.step)
        first = world()[0] == 0
        stages: list[Callable[[], None]] = [
            partial(begin, target) if first else _nothing,
            partial(self._write, temporary_path(target), trainer, ledger, records),
            partial(seal, target, self._job.run) if first else _nothing,
        ]
        if all(self._together(stage, target) for stage in stages) and first:
            prune(self._job.directory, self._job.run, self._job.spec.train.checkpoint.keep)

    def _together(self, stage: Callable[[], None], target: Path) -> bool:
        """Carries a stage out on all ranks; whether it went well on all of them."""
        failed = False
        try:
            stage()
        except (OSError, RecordError, SafetensorError) as error:
            failed = True
            reason = explain(error, target) if isinstance(error, OSError) else str(error)
            log.warning("%s: the checkpoint at step %d could not be written: %s", self._job.run, step_of(target), reason)
        return not float(all_sum(torch.tensor(float(failed), device=self._device)))

    def _write(self, folder: Path, trainer: Trainer, ledger: Ledger, records: Position) -> None:
        rank, world_size = world()
        write_rank(folder, trainer)
        if rank == 0:
            state = {
                "job": _identity(self._job),
                "step": trainer.freezer.step,
                "world_size": world_size,
                "ledger": ledger.state(),
                "records": dict(records),
                "optimizer": write_shared(folder, trainer),
            }
            (folder / STATE).write_text(json.dumps(state, indent=1, allow_nan=False))

    def restore(self, trainer: Trainer, records_hold: Callable[[Position], bool]) -> Saved | None:
        """Brings a new trainer to the newest checkpoint that is whole, and removes newer ones: the run will come there again.

        Args:
            trainer: Of the same job, before its first step.
            records_hold: Asked on the first rank: whether the records reach a position.

        Returns:
            What the checkpoint says; None when there is none, and the run has to begin anew.

        Raises:
            InputError: The checkpoint is that of another specification or seed; the fields that differ are named.
            RecordError: It was written by a newer program, does not fit the task, or cannot be read on every rank.
        """
        step = self._newest(records_hold)
        if step is None:
            return None
        folder = checkpoint_path(self._job.directory, self._job.run, step)
        try:
            text = (folder / STATE).read_bytes()
        except OSError as error:
            raise RecordError(f"worker {world()[0]} cannot read {folder}, which all workers must share: {error.strerror}") from error
        check_agreement(f"checkpoint of step {step}", text, self._device)
        state = json.loads(text)
        _check_same_job(folder, state["job"], _identity(self._job))
        read(folder, trainer, state["optimizer"], world_size=state["world_size"])
        return Saved(**{name: state[name] for name in ("step", "world_size", "ledger", "records")})

    def clear(self, after: int) -> None:
        """Removes the checkpoints of later steps, which the run will come to again."""
        if world()[0] == 0:
            for path in checkpoints(self._job.directory, self._job.run):
                if step_of(path) > after:
                    remove(path)

    def _newest(self, records_hold: Callable[[Position], bool]) -> int | None:
        """Step of the newest whole checkpoint, found on the first rank and told to all."""
        answer = torch.zeros(2, dtype=torch.int64, device=self._device)
        refused: RecordError | None = None
        if world()[0] == 0:
            try:
                answer[0] = self._look(records_hold)
            except RecordError as error:
                refused, answer[1] = error, 1
        step, is_refused = all_sum(answer).tolist()
        if is_refused:
            raise refused or RecordError("worker 0 refused the checkpoint")
        return None if step < 0 else int(step)

    def _look(self, records_hold: Callable[[Position], bool]) -> int:
        """Step of the newest whole checkpoint, -1 without one; says which are passed over, and why."""
        for path in checkpoints(self._job.directory, self._job.run):
            try:
                check(path, self._job.run)
                if records_hold(json.loads((path / STATE).read_bytes())["records"]):
                    return step_of(path)
                problem = f"{path} is ahead of the records of the run"
            except NewerCheckpointError:
                raise
            except RecordError as error:
                problem = str(error)
            log.warning("%s: passed over a checkpoint: %s", self._job.run, problem)
        return -1


def difference(saved: Saved | None, world_size: int) -> str:
    """What can no longer be equal to the uninterrupted run when it goes on with so many workers; empty when everything is."""
    if saved is None or saved.world_size == world_size:
        return ""
    note = (
        f"resumed at step {saved.step} on {world_size} instead of {saved.world_size} workers: from here on the run is no longer equal "
        "to the bit to one without interruption, because each worker draws its own dropout masks and sums over its own share of a batch"
    )
    if world()[0] == 0:
        log.warning("%s", note)
    return note


def _nothing() -> None:
    """What a rank does while another one works."""


def _identity(job: RunJob) -> dict[str, Any]:
    """What must be equal for a run to go on."""
    return {**job.model_dump(mode="json", include={"run", "study", "trial", "seed", "follow"}), "spec": job.spec.model_dump(mode="json")}


def _check_same_job(folder: Path, saved: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    differing = [
        f"{key.removeprefix('spec.')} is {json.dumps(now)}, was {json.dumps(was)}"
        for key, was, now in _differences("", saved, job)
        if not any(key.removeprefix("spec.").startswith(free) for free in _FREE)
    ]
    if differing:
        raise InputError(f"cannot go on from {folder}, which was saved with other settings: {'; '.join(differing)}")


def _differences(prefix: str, first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys with both values, null where one has none."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys([*first, *second]):
            yield from _differences(f"{prefix}.{key}" if prefix else key, first.get(key), second.get(key))
    elif first != second:
        yield prefix, first, second
