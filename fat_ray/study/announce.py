"""What happens in a study, told as it happens: one mapping of plain JSON types per event. docs/console.md describes the keys."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from fat_ray.spec.study import StudySpec
from fat_ray.study.ledger import Ledger
from fat_ray.study.plan import Plan
from fat_ray.study.portrait import Portrait
from fat_ray.view.document import summary, trial_document
from fat_ray.view.picture import TrialLine

FORMAT, VERSION = "fat_ray.events", 1
"""The version is raised when a key changes its meaning or goes; new keys and events do not raise it."""

OnEvent = Callable[[Mapping[str, Any]], None]


class Announcer(Callback):  # type: ignore[misc]
    """Tells somebody what happens. If that one raises, it is told nothing more, and the study goes on.

    Args:
        spec: The study.
        directory: Its directory.
        ledger: Its trials.
        on_event: Who is told.
    """

    def __init__(self, spec: StudySpec, directory: Path, ledger: Ledger, on_event: OnEvent) -> None:
        self._spec, self._directory, self._ledger = spec, directory, ledger
        self._portrait = Portrait(spec, ledger)
        self._on_event: OnEvent | None = on_event
        self._warned = 0

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of its callbacks; who is told does not belong there."""
        return {}

    def begin(self, plan: Plan) -> None:
        """The study starts."""
        self._tell(
            "study_started",
            format=FORMAT,
            version=VERSION,
            study=self._spec.name,
            directory=str(self._directory),
            objectives=[objective.model_dump() for objective in self._spec.objectives],
            metric=self._portrait.shown.metric,
            trials=self._ledger.total,
            seeds=self._spec.seeds,
            steps=self._spec.train.steps,
            concurrency=plan.concurrency,
            workers=plan.workers,
        )

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Warnings, each once."""
        self._warn()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A trial starts."""
        ours = self._ledger.of(trial.trial_id)
        runs = [job.run for job in ours.jobs]
        self._tell("trial_started", trial=ours.name, setting=dict(ours.params), baseline=ours.is_baseline, runs=runs)

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A run was evaluated."""
        if "step" not in result:
            return
        ours = self._ledger.of(trial.trial_id)
        job = ours.jobs[int(result.get("position", 0))]
        self._tell(
            "trial_evaluated",
            trial=ours.name,
            run=job.run,
            seed=job.seed,
            step=ours.step,
            steps=ours.steps,
            metrics={key: _finite(found) for key, found in result.items() if key.startswith("val/")},
            active_fraction=ours.active[-1][1] if ours.active else None,
        )

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A trial ended."""
        self._ended(self._portrait.line(self._ledger.of(trial.trial_id), time.monotonic()))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A trial's process died."""
        self._ended(self._portrait.line(self._ledger.of(trial.trial_id), time.monotonic()))

    def end(self, state: str, detail: str) -> None:
        """The study ended.

        Args:
            state: See `fat_ray.records.driver`.
            detail: Why, if there is a reason.
        """
        self._warn()
        self._portrait.ended = state, detail
        self._tell("study_ended", state=state, detail=detail, directory=str(self._directory), **summary(self._portrait()))

    def _ended(self, line: TrialLine) -> None:
        front = [trial.name for trial in self._portrait().front]
        self._tell("trial_ended", **trial_document(line, self._spec.objectives), front=front)

    def _warn(self) -> None:
        for note in self._ledger.notes[self._warned :]:
            self._warned += 1
            self._tell("warning", message=note)

    def _tell(self, event: str, **values: Any) -> None:
        if self._on_event is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self._on_event({"event": event, "at": at, **values})
        except Exception as error:  # noqa: BLE001 - whoever listens, the study goes on
            self._on_event = None
            self._ledger.warn(f"events are told no more, since the listener failed: {type(error).__name__}: {error}")


def _finite(value: Any) -> float | None:
    return float(value) if isfinite(value) else None
