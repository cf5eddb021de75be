"""Replaying many settings at once against the live policy, step by step, one setting at a time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fat_ray import rules
from fat_ray.freeze.measured import FisherDrift
from fat_ray.freeze.policy import Observation
from fat_ray.replay import simulate
from fat_ray.replay.recording import Recording
from fat_ray.replay.settings import settings_of
from fat_ray.replay.simulate import coarser, replay
from fat_ray.spec.run import RunSpec, merge
from fat_ray.spec.study import as_json
from tests.support.recordings import recording_of

NAN = np.nan


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """Up to eight groups; some are measured now and then, some never, some from a step on not at all."""
    groups, updates, window = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    values = st.floats(-0.1, 1) | st.sampled_from([0.25, NAN])
    distance = draw(arrays(np.float64, (updates, groups), elements=values))
    distance[0] = NAN
    zero = draw(st.booleans())
    dead = draw(arrays(np.bool_, groups)) if zero else np.zeros(groups, np.bool_)
    dead[-1] = False
    distance[:, dead] = NAN
    until = np.array([draw(st.integers(1, 2 * updates)) for _ in range(groups)]) if draw(st.booleans()) else np.full(groups, updates)
    active = np.arange(updates)[:, None] < until
    distance[~active] = NAN
    elements = [draw(st.integers(1, 50)) for _ in range(groups)]
    spec = {"fisher": {"uncovered": "zero" if zero else "squared_gradient"}}
    steps = draw(st.integers((updates - 1) * window + 1, updates * window))
    return recording_of(distance, steps=steps, window=window, elements=elements, active=active, dead=dead, spec=spec)


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "freeze.threshold": st.floats(-2, 1),
        "freeze.every": st.integers(1, 5),
        "freeze.warmup_steps": st.integers(0, 6),
        "freeze.floor": st.floats(0, 1),
        "freeze.cap": st.floats(0.01, 1),
        "freeze.confidence": st.sampled_from([0.0, 1.0]),
        "drift.smoothing": st.sampled_from([0.0, 0.5, 0.9]) | st.floats(0, 0.99),
        "drift.start": st.sampled_from(["corrected", "zero"]),
        "drift.score": st.sampled_from(["mean", "last", "total_variation"]),
    },
)


def trained(recording: Recording, change: dict[str, Any]) -> tuple[list[int], int]:
    """What the live policy does when these distances come in: when each group freezes, and the first decision that lacks a distance."""
    data = as_json(recording.spec)
    for key, value in change.items():
        section, _, name = key.partition(".")
        data = merge(data, {section: {name: value}})
    spec, groups = RunSpec.model_validate(data), len(recording.groups)
    policy = FisherDrift(spec.freeze, bury_dead=spec.fisher.uncovered == "zero")
    history, active, lacks = rules.DriftHistory.empty(groups), np.ones(groups, np.bool_), False
    frozen_at, unknown = [recording.steps] * groups, np.full(groups, NAN)
    for step in range(recording.steps):
        if step % spec.fisher.every == 0:
            update = step // spec.fisher.every
            lacks = lacks or bool((active & ~recording.active[update]).any())
            if update == 0 and spec.drift.start == "zero":
                history = rules.begin(history, active & ~recording.dead)
            measured = active & ~np.isnan(recording.distance[update])
            corrected = spec.drift.start == "corrected"
            history = rules.observe(history, recording.distance[update], measured, spec.drift.smoothing, corrected=corrected)
        if policy.is_due(step):
            if lacks and step > 0:
                return frozen_at, step
            scores, errors = rules.score(history, spec.drift.score), rules.standard_error(history)
            seen = Observation(step, 0, scores, errors, recording.dead, active, recording.elements, unknown, unknown, unknown)
            freeze = policy.decide(seen).freeze
            active = active & ~freeze
            frozen_at = [step if now else before for now, before in zip(freeze, frozen_at, strict=True)]
    return frozen_at, recording.steps


@pytest.mark.cpu_limit(5)
@settings(max_examples=60, deadline=None)
@given(recordings(), st.lists(CHANGES, min_size=1, max_size=6), st.integers(1, 7))
def test_a_replay_decides_as_the_live_policy_does(recording: Recording, changes: list[dict[str, Any]], rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "_ROWS", rows)  # however many are replayed at a time
        schedules = replay(recording, settings_of(recording.spec, changes))
    for row, change in enumerate(changes):
        assert (schedules.frozen_at[row].tolist(), schedules.known_until[row]) == trained(recording, change)


def test_a_coarser_window_holds_the_mean_of_what_was_measured_in_it() -> None:
    distance = np.array([[NAN, NAN], [0.2, NAN], [0.4, 0.6], [0.6, NAN], [NAN, NAN]])
    active = np.array([[True, True]] * 4 + [[False, True]])
    found = coarser(recording_of(distance, steps=10, window=2, active=active), 4)
    assert found.updates.tolist() == [0, 4, 8]
    assert np.allclose(found.distance, [[NAN, NAN], [0.3, 0.6], [0.6, NAN]], equal_nan=True)
    assert found.active.tolist() == [[True, True], [True, True], [False, True]]


def test_windows_are_replayed_side_by_side() -> None:
    rng = np.random.default_rng(0)
    recording = recording_of(rng.random((12, 6)), steps=24, window=2)
    changes = [{"fisher.every": 2 * (1 + i % 3), "freeze.threshold": -1.5 + 0.2 * i} for i in range(9)]
    together = replay(recording, settings_of(recording.spec, changes))
    for row, change in enumerate(changes):
        windowed = coarser(recording, change["fisher.every"])
        alone = replay(windowed, settings_of(windowed.spec, [{"freeze.threshold": change["freeze.threshold"]}]))
        assert together.frozen_at[row].tolist() == alone.frozen_at[0].tolist()
    assert len({tuple(row) for row in together.frozen_at.tolist()}) > 3
