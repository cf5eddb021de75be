"""What other settings would have frozen, from the drift that one run recorded: by the functions of `rules` that decide while a run trains.

Exact is what follows from the distances that were recorded. What nobody can know is how distances would have gone on once a group had been
frozen: the others learn on without it, and drift otherwise than they did. See docs/replay.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fat_ray import rules
from fat_ray.replay.recording import Recording
from fat_ray.replay.settings import WINDOW, Settings
from fat_ray.rules import Bools, Floats, Ints

_ROWS = 512
"""Settings that are replayed at a time: their arrays fit into the caches of a core."""


@dataclass(frozen=True)
class Schedules:
    """What each setting would have frozen, and when.

    Attributes:
        steps: Optimizer steps of the run.
        frozen_at: Step at which each group freezes, `steps` for those that never do, shape (settings, groups).
        known_until: First step whose decision depends on drift that was not recorded, shape (settings,); `steps` if none does.
    """

    steps: int
    frozen_at: Ints
    known_until: Ints


@dataclass(frozen=True)
class Decided:
    """Decisions at one step.

    Attributes:
        step: The step.
        rows: The settings that decide then.
        selection: What each decides, in the order of `rows`.
        known: Whether all distances that it depends on were recorded, likewise.
    """

    step: int
    rows: Ints
    selection: rules.Selection
    known: Bools


def replay(recording: Recording, settings: Settings) -> Schedules:
    """What settings would have frozen, each exactly as if it were the only one.

    Args:
        recording: The run whose drift is known.
        settings: As `settings_of` made them for this run.
    """
    shape = (len(settings), len(recording.groups))
    frozen_at, known_until = np.full(shape, recording.steps, np.int64), np.full(len(settings), recording.steps, np.int64)
    for window in np.unique(settings[WINDOW]).tolist():
        windowed = coarser(recording, window)
        alike = np.flatnonzero(settings[WINDOW] == window)
        alike = alike[np.lexsort((settings["drift.smoothing"][alike], settings["drift.start"][alike]))]  # those with one history together
        for rows in np.split(alike, range(_ROWS, len(alike), _ROWS)):
            for decided in decisions(windowed, settings.take(rows)):
                chosen = rows[decided.rows]
                found = np.where(decided.known[:, None] & decided.selection.freeze, decided.step, frozen_at[chosen])
                frozen_at[chosen] = np.minimum(frozen_at[chosen], found)
                known_until[chosen] = np.where(decided.known, known_until[chosen], np.minimum(known_until[chosen], decided.step))
    return Schedules(recording.steps, frozen_at, known_until)


def coarser(recording: Recording, window: int) -> Recording:
    """The recording as one in a window that is a multiple of its own: of each window's distances, the mean.

    This is an approximation. Distances between states that lie further apart, of running averages over fewer collections, were not
    recorded. A factor that all distances have in common changes no decision; see docs/replay.md for how near it comes.
    """
    stride = window // recording.spec.fisher.every
    if stride == 1:
        return recording
    updates = np.arange(0, len(recording.updates), stride)
    distance, active = np.full((len(updates), len(recording.groups)), np.nan), np.empty((len(updates), len(recording.groups)), np.bool_)
    for place, last in enumerate(updates):
        within = recording.distance[max(0, last - stride + 1) : last + 1]
        known = ~np.isnan(within)
        total = np.where(known, within, 0.0).sum(0)
        distance[place] = np.divide(total, known.sum(0), out=distance[place], where=known.any(0))
        active[place] = recording.active[last]
    return replace(recording, updates=recording.updates[updates], distance=distance, active=active)


def decisions(recording: Recording, settings: Settings) -> Iterator[Decided]:
    """All decisions that settings take, step by step. What is frozen stays so.

    Args:
        recording: In the window of all these settings.
        settings: As for `replay`.
    """
    histories = _Histories(recording, settings)
    frozen = np.zeros((len(settings), len(recording.groups)), np.bool_)
    known = np.ones(len(settings), np.bool_)
    if recording.spec.fisher.uncovered == "zero":
        yield _burial(recording, len(settings))
        frozen |= recording.dead
    due_at = _due_steps(recording, settings)
    updates = dict(zip(recording.updates.tolist(), range(len(recording.updates)), strict=True))
    for step in sorted(updates.keys() | set(due_at)):
        if (update := updates.get(step)) is not None:
            known &= ~(~frozen & ~recording.active[update]).any(1)
            histories.observe(update)
        if (rows := due_at.get(step)) is not None:
            scores, errors = histories.scores(rows)
            selection = rules.decide_by_drift(scores, errors, ~frozen[rows], recording.elements, settings.take(rows).rule)
            yield Decided(step, rows, selection, known[rows])
            frozen[rows] |= selection.freeze


def _burial(recording: Recording, number: int) -> Decided:
    """The decision at step 0 on groups without Fisher, alike in all settings."""
    freeze = np.tile(recording.dead, (number, 1))
    selection = rules.Selection(freeze, np.full(number, -np.inf), np.full(number, ""))
    return Decided(0, np.arange(number), selection, np.ones(number, np.bool_))


def _due_steps(recording: Recording, settings: Settings) -> dict[int, Ints]:
    """Steps to the settings that decide then."""
    every, warmup = settings["freeze.every"], settings["freeze.warmup_steps"]
    windows = np.unique(every).tolist()
    steps = sorted({step for window in windows for step in range(window, recording.steps, window)})
    due = ((step, np.flatnonzero(rules.drift_is_due(step, every, warmup))) for step in steps)
    return {step: rows for step, rows in due if rows.size}


class _Histories:
    """Histories of distances, one for each way of smoothing among the settings.

    A history goes on for groups that a setting has frozen; nothing asks for their scores.

    Args:
        recording: What was measured.
        settings: Who asks.
    """

    def __init__(self, recording: Recording, settings: Settings) -> None:
        ways = np.stack([settings["drift.smoothing"], settings["drift.start"] == "corrected"], axis=1)
        distinct, self._history_of = np.unique(ways, axis=0, return_inverse=True)
        self._smoothing, self._corrected = distinct[:, :1], distinct[:, 1:] == 1.0
        self._recording, self._kind = recording, settings["drift.score"]
        self._history = rules.DriftHistory.empty(len(recording.groups))

    def observe(self, update: int) -> None:
        """Takes an update in."""
        recording = self._recording
        if update == 0 and not self._corrected.all():
            self._history = rules.begin(self._history, ~self._corrected & recording.active[0] & ~recording.dead)
        distance = recording.distance[update]
        measured = ~np.isnan(distance)
        self._history = rules.observe(self._history, distance, measured, self._smoothing, corrected=self._corrected)

    def scores(self, rows: Ints) -> tuple[Floats, Floats]:
        """Scores and their standard errors for some of the settings, each (rows, groups)."""
        shape = (rows.size, len(self._recording.groups))
        scores, kinds, histories = np.empty(shape), self._kind[rows], self._history_of[rows]
        for kind in np.unique(kinds).tolist():
            alike = kinds == kind
            scores[alike] = self._rows(rules.score(self._history, kind), histories[alike])
        return scores, np.broadcast_to(rules.standard_error(self._history), shape)

    def _rows(self, values: NDArray[Any], histories: Ints) -> Floats:
        return np.broadcast_to(values, (len(self._smoothing), values.shape[-1]))[histories]
