"""What a run has cost so far, and how its metrics went: kept while it runs, summed up at its end."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fat_ray.events import Eval, RunEnd, Status, Step
from fat_ray.tasks.base import Direction

_GIVEN = ("total_elements", "num_workers", "directions", "started")
_METRICS = ("final", "best")


@dataclass
class Ledger:
    """Sums over the steps of a run.

    Attributes:
        total_elements: Entries of all groups.
        num_workers: Ranks of the run.
        directions: The task's metrics and which direction is better.
        earlier_wall_s: Seconds up to the checkpoint from which the run goes on.
        earlier_worker_s: The same over all workers.
    """

    total_elements: int
    num_workers: int
    directions: Mapping[str, Direction]
    steps: int = 0
    updates: int = 0
    flops: float = 0.0
    train_s: float = 0.0
    comm_bytes: int = 0
    optimizer_bytes: int = 0
    peak_memory_bytes: int = 0
    final: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    earlier_wall_s: float = 0.0
    earlier_worker_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add_step(self, step: Step) -> None:
        """Counts an optimizer step."""
        self.steps += 1
        self.updates += step.active_elements
        self.flops += step.flops
        self.train_s += step.step_s
        self.comm_bytes += step.comm_bytes
        self.optimizer_bytes = max(self.optimizer_bytes, step.optimizer_bytes)
        self.peak_memory_bytes = max(self.peak_memory_bytes, step.peak_memory_bytes)

    def add_evaluation(self, result: Eval) -> None:
        """Keeps the last value of each metric, and the best of ``val`` with the step it was seen at (``val/f1@step``)."""
        for metric, value in result.metrics.items():
            key = f"{result.split}/{metric}"
            self.final[key] = value
            if result.split != "val":
                continue
            known = self.best.get(key)
            sign = 1 if self.directions.get(metric) == "maximize" else -1
            if known is None or math.isnan(known) or sign * value > sign * known:
                self.best[key] = value
                self.best[f"{key}@step"] = float(result.step)

    @property
    def mean_active(self) -> float:
        """The paper's N̄: mean over steps of the number of active entries; all entries before the first step."""
        return self.updates / self.steps if self.steps else float(self.total_elements)

    @property
    def wall_s(self) -> float:
        """Seconds since the run began on this rank; without those that an interruption took, and those whose work was lost in it."""
        return self.earlier_wall_s + time.perf_counter() - self.started

    @property
    def worker_s(self) -> float:
        """The same, times the number of workers at the time."""
        return self.earlier_worker_s + (time.perf_counter() - self.started) * self.num_workers

    def state(self) -> dict[str, Any]:
        """All sums as JSON types, for `load_state`; NaN and infinity as text."""
        sums = {name: value for name, value in vars(self).items() if name not in (*_GIVEN, *_METRICS)}
        texts = {name: {key: repr(value) for key, value in getattr(self, name).items()} for name in _METRICS}
        return {**sums, **texts, "earlier_wall_s": self.wall_s, "earlier_worker_s": self.worker_s}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        for name, value in state.items():
            setattr(self, name, {key: float(text) for key, text in value.items()} if name in _METRICS else value)

    def summary(self, step: int) -> dict[str, float]:
        """The last metrics and the costs so far: what a study judges a run by."""
        costs = {
            "step": step,
            "mean_active": self.mean_active,
            "mean_active_fraction": self.mean_active / self.total_elements,
            "worker_s": self.worker_s,
            "train_s": self.train_s,
            "flops": self.flops,
        }
        return {**costs, **self.final}

    def end(self, status: Status, reason: str = "") -> RunEnd:
        """The last event of the run."""
        return RunEnd(
            status=status,
            reason=reason,
            steps=self.steps,
            wall_s=self.wall_s,
            train_s=self.train_s,
            worker_s=self.worker_s,
            updates=self.updates,
            flops=self.flops,
            mean_active=self.mean_active,
            mean_active_fraction=self.mean_active / self.total_elements,
            final=self.final,
            best=self.best,
            comm_bytes=self.comm_bytes,
            optimizer_bytes=self.optimizer_bytes,
            peak_memory_bytes=self.peak_memory_bytes,
        )
