"""The picture of a study as plain JSON types with stable keys. docs/console.md describes them. Unknown values are None, never NaN."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from fat_ray.spec.study import Objective
from fat_ray.view.picture import Picture, TrialLine

FORMAT, VERSION = "fat_ray.status", 1
"""The version is raised when a key changes its meaning or goes; new keys do not raise it."""


def document(picture: Picture) -> dict[str, Any]:
    """The whole picture."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "study": picture.study,
        "state": picture.state,
        "detail": picture.detail,
        "metric": picture.metric,
        "objectives": [objective.model_dump() for objective in picture.objectives],
        **summary(picture),
        "time_left_s": picture.time_left_s,
        "trials": [trial_document(trial, picture.objectives) for trial in picture.trials],
    }


def summary(picture: Picture) -> dict[str, Any]:
    """How far the study is, and what came out so far."""
    states = dict.fromkeys(trial.state for trial in picture.trials)
    best = picture.best
    return {
        "planned": picture.total,
        "done": picture.done,
        "running": picture.running,
        "queued": picture.queued,
        "counts": {state: picture.count(state) for state in states},
        "progress": picture.progress,
        "elapsed_s": picture.elapsed_s,
        "front": [trial.name for trial in picture.front],
        "best_compromise": None if best is None else best.name,
        "warnings": list(picture.warnings),
    }


def line_writer(stream: TextIO) -> Callable[[Mapping[str, Any]], None]:
    """Writes each mapping that it is given as a line of JSON, at once."""

    def write(values: Mapping[str, Any]) -> None:
        stream.write(json.dumps(values, allow_nan=False) + "\n")
        stream.flush()

    return write


def trial_document(trial: TrialLine, objectives: Sequence[Objective]) -> dict[str, Any]:
    """One trial."""
    values = None if trial.values is None else {goal.metric: value for goal, value in zip(objectives, trial.values, strict=True)}
    return {
        "trial": trial.name,
        "setting": dict(trial.params),
        "baseline": trial.is_baseline,
        "state": trial.state,
        "reason": trial.reason,
        "seeds": trial.seeds,
        "seeds_done": trial.seeds_done,
        "step": trial.step,
        "steps": trial.steps,
        "last": trial.last,
        "best": trial.best,
        "at_budget": values,
        "active_fraction": trial.active[-1][1] if trial.active else None,
        "elapsed_s": trial.elapsed_s,
    }
