"""Whether there is space for a study's checkpoints and records: estimated before it starts, looked at while it runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from fat_ray.errors import OutputError
from fat_ray.records.files import free_bytes, mebibytes
from fat_ray.records.manifest import MIN_FREE_BYTES
from fat_ray.spec.study import StudySpec, as_json, num_trials
from fat_ray.study.ledger import Close, Ledger

LOOK_S = 5.0
"""Time between two looks at the free space."""

FreeBytes = Callable[[Path], int]


@dataclass(frozen=True)
class Space:
    """What a study needs on its disk, roughly.

    Attributes:
        checkpoint_bytes: One checkpoint: the weights, and what the optimizer and the statistics keep of each.
        live: Checkpoints that trials which run at the same time have, with one each that is being written.
        kept: Checkpoints that stay when trials have ended; at least those of one trial.
        concurrency: Trials at the same time.
    """

    checkpoint_bytes: int
    live: int
    kept: int
    concurrency: int

    @property
    def needed_bytes(self) -> int:
        """For the whole study."""
        return MIN_FREE_BYTES + (self.live + self.kept) * self.checkpoint_bytes

    @property
    def reserve_bytes(self) -> int:
        """What must stay free: for the last records of all, and for a checkpoint of each trial that is asked to stop."""
        return MIN_FREE_BYTES + self.concurrency * self.checkpoint_bytes


def space(spec: StudySpec, weights_bytes: int, concurrency: int) -> Space:
    """Estimates it.

    Args:
        spec: The study.
        weights_bytes: The state dict of the model.
        concurrency: Trials at the same time.
    """
    checkpoint = spec.train.checkpoint
    if checkpoint.every == 0:
        return Space(0, 0, 0, concurrency)
    each = len(spec.seeds) * checkpoint.keep
    kept = each if checkpoint.retain == "front" else each * num_trials(as_json(spec))
    return Space(_copies(spec) * weights_bytes, concurrency * (each + 1), kept, concurrency)


def _copies(spec: StudySpec) -> int:
    """Numbers in a checkpoint per weight, at most: itself, moments of the optimizer, an average of the Fisher, merged adapters."""
    adam = "train.optimizer.name" in spec.search or spec.train.optimizer.name == "adamw"
    average = "drift.compare" in spec.search or spec.drift.compare == "average"
    policies = str([spec.freeze.policy, spec.search.get("freeze.policy"), spec.baselines])
    return 1 + (2 if adam else 1) + average + ("lora" in policies)


def check_space(directory: Path, need: Space, free: FreeBytes = free_bytes) -> None:
    """Refuses a study for which there is too little space.

    Raises:
        OutputError: With the numbers.
    """
    has = free(directory)
    if has < need.needed_bytes:
        raise OutputError(
            f"too little space for {directory}: {mebibytes(has)} free, the study needs about {mebibytes(need.needed_bytes)}: "
            f"{need.live + need.kept} checkpoints of {mebibytes(need.checkpoint_bytes)} ({need.concurrency} trials at a time, and those "
            f"that are kept), and {mebibytes(MIN_FREE_BYTES)} for records; choose another --out, fewer trials at a time "
            "(budget.concurrency) or fewer checkpoints (train.checkpoint.keep, .retain)"
        )


class DiskGuard(Callback):  # type: ignore[misc]
    """Looks at the free space while a study runs: warns once, removes what nobody needs, and at last ends the study in good order.

    Args:
        directory: The study's directory.
        ledger: Its trials.
        need: What the study needs.
        prune: Removes checkpoints that are not kept; see `fat_ray.study.retention`.
        free: How many bytes are free where a path is.
    """

    def __init__(self, directory: Path, ledger: Ledger, need: Space, prune: Callable[[], object], *, free: FreeBytes = free_bytes) -> None:
        self._directory, self._ledger, self._need = directory, ledger, need
        self._prune, self._free = prune, free
        self._next_look_s, self._warned = float("-inf"), False

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of its callbacks."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Tune calls this about ten times per second."""
        now_s = time.monotonic()
        if now_s >= self._next_look_s and self._ledger.close is None:
            self._next_look_s = now_s + LOOK_S
            self.look()

    def look(self) -> None:
        """Looks now."""
        reserve = self._need.reserve_bytes
        has = self._free(self._directory)
        if has >= reserve:
            return
        if not self._warned:
            self._warned = True
            self._ledger.warn(
                f"little disk space: {mebibytes(has)} free at {self._directory}, less than the {mebibytes(reserve)} that the records and "
                "a checkpoint of each running trial may need"
            )
        self._prune()
        if self._free(self._directory) < reserve:
            self._ledger.end_early(Close.OUT_OF_DISK)
