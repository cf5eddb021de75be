"""Replays of real runs: each run's own setting gives its recorded schedule, and a run without freezing foretells that of others up to
what they freeze first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fat_ray.errors import InputError
from fat_ray.records.reader import read_table, run_end
from fat_ray.replay import costs
from fat_ray.replay.recording import Recording, frozen_at, read_recording
from fat_ray.replay.settings import settings_of
from fat_ray.replay.simulate import Schedules, decisions, replay
from fat_ray.spec.run import RunSpec, merge
from fat_ray.train.local import run_local
from tests.support.jobs import tiny_job

STEPS = 24
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "last": {"freeze": {"threshold": -0.5, "every": 3}, "drift": {"score": "last", "smoothing": 0.5}},
    "limited": {
        "freeze": {"threshold": 0.5, "every": 4, "warmup_steps": 10, "cap": 0.4, "floor": 0.2, "confidence": 0.3},
        "drift": {"start": "zero"},
    },
    "squares": {"fisher": {"estimator": "squared_gradient"}},
    "columns": {"fisher": {"every": 2, "groups": {"along": "columns"}}, "freeze": {"cap": 0.9, "threshold": 0.3}},
    "released": {"preset": "released", "freeze": {"every": 3, "threshold": -0.2}},
}


def train(directory: Path, name: str, over: dict[str, Any]) -> RunSpec:
    job = tiny_job(directory, name, workers=1, steps=STEPS, evaluate_every=STEPS, batch_norm=True)
    base = job.spec.model_dump(mode="json")
    if "preset" in over:
        base = {**{key: base[key] for key in ("task", "train")}, "fisher": {"every": 1}}
    spec = RunSpec.model_validate(merge(base, over))
    run_local(job.model_copy(update={"spec": spec}))
    return spec


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each setting, and one that records drift and freezes nothing."""
    found = tmp_path_factory.mktemp("replayed")
    train(found, "none", {"freeze": {"policy": "none"}, "fisher": {"record": "always"}})
    for name, over in SETTINGS.items():
        train(found, name, over)
    return found


def recorded(directory: Path, recording: Recording) -> list[int]:
    return frozen_at(directory, recording.run, len(recording.groups), recording.steps).tolist()


@pytest.mark.parametrize("run", SETTINGS)
def test_its_own_drift_gives_the_schedule_of_a_run_to_the_bit(directory: Path, run: str) -> None:
    recording = read_recording(directory, run)
    settings = settings_of(recording.spec, [{}])
    events = read_table(directory, "events", run).to_pylist()
    taken = list(decisions(recording, settings))
    assert [decided.step for decided in taken] == [event["step"] for event in events]
    for decided, event in zip(taken, events, strict=True):
        tau = float(decided.selection.threshold[0])
        assert (tau if np.isfinite(tau) else None) == event["threshold"]
        assert (int(decided.selection.freeze.sum()), decided.selection.limited_by[0]) == (event["frozen_groups"], event["limited_by"])
    schedules, end = replay(recording, settings), run_end(directory, run)
    assert end is not None
    assert schedules.frozen_at[0].tolist() == recorded(directory, recording)
    assert schedules.known_until[0] == STEPS
    assert costs.mean_active(recording, schedules)[0] == end.mean_active
    assert end.mean_active_fraction < 1


@pytest.mark.parametrize("run", ["default", "last", "limited"])
def test_drift_without_freezing_gives_a_schedule_up_to_what_it_freezes_first(directory: Path, run: str) -> None:
    recording = read_recording(directory, "none")
    assert not recording.freezes
    wanted = read_recording(directory, run)
    found = replay(recording, settings_of(wanted.spec, [{}])).frozen_at[0]
    real = np.array(recorded(directory, wanted))
    first = real.min()
    assert first < STEPS
    assert (np.minimum(found, first + 1) == np.minimum(real, first + 1)).all()


def test_recording_drift_changes_nothing_that_is_learnt(directory: Path) -> None:
    train(directory, "plain", {"freeze": {"policy": "none"}})
    names = ["loss", "grad_norm", "active_elements"]
    assert read_table(directory, "steps", "plain").select(names).equals(read_table(directory, "steps", "none").select(names))
    assert read_table(directory, "events", "none").num_rows == 0
    with pytest.raises(InputError, match=r"run plain recorded no drift .*: give a run with fisher\.record = always"):
        read_recording(directory, "plain")


def test_a_run_that_froze_tells_what_it_does_not_know(directory: Path) -> None:
    recording = read_recording(directory, "default")
    later = replay(recording, settings_of(recording.spec, [{"freeze.warmup_steps": 12}]))
    first = min(recorded(directory, recording))
    assert recording.freezes
    assert first < later.known_until[0] == 12
    assert (later.frozen_at == STEPS).all()


@pytest.mark.parametrize(("run", "error"), [("default", 1e-9), ("limited", 1e-9), ("last", 1e-9), ("columns", 0.01)])
def test_operations_of_a_schedule_come_out_as_they_were_counted(directory: Path, run: str, error: float) -> None:
    """With columns, biases are groups of their own; the model counts their entries as if their gradients were products too."""
    recording, end = read_recording(directory, run), run_end(directory, run)
    never = Schedules(STEPS, np.full((1, len(recording.groups)), STEPS), np.array([STEPS]))
    found, whole = costs.flops(recording, replay(recording, settings_of(recording.spec, [{}]))), costs.flops(recording, never)
    assert end is not None
    assert found is not None
    assert whole is not None
    assert found[0] == pytest.approx(end.flops, rel=error)
    assert end.flops < 0.95 * whole[0]
