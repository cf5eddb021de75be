"""The preset `released` against numbers recorded from the released implementation."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fat_ray import rules
from fat_ray.engine.step import Trainer
from fat_ray.events import Drift, Freeze, Step
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.drift import js_distance
from fat_ray.fisher.flat import NOTHING, RunningAverage
from fat_ray.fisher.groups import Group, build_groups
from fat_ray.fisher.released import ReleasedFormulas
from fat_ray.fisher.state import State, group_values
from fat_ray.freeze.measured import FisherDrift
from fat_ray.freeze.policy import Observation
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import RunSpec
from fat_ray.tasks.base import Batch
from tests.support.factors import states as finished_states
from tests.support.factors import watched_states
from tests.support.parity_network import DATA, ParityNetwork, Recorded, recorded

CPU = torch.device("cpu")
RUNS = ["row_tv", "col_mean_raw"]


def spec_of(run: Recorded) -> RunSpec:
    """The recorded settings in this project's words; what they do not name is the preset's."""
    given = run.facts["trainer"]
    drift: dict[str, Any] = {"score": {"mean_js": "mean"}.get(given.get("chunk_selection_metric", ""), "total_variation")}
    drift["distance"] = given.get("js_distance_mode", "log")
    return RunSpec.model_validate(
        {
            "preset": "released",
            "train": {
                "optimizer": {"lr": run.facts["lr"], "weight_decay": run.facts["weight_decay"]},
                "schedule": {"name": "constant"},
                "steps": run.facts["steps"],
                "global_batch": run.facts["batch"],
                "clip_norm": None,
            },
            "fisher": {
                "every": given["fisher_ema_interval"],
                "groups": {
                    "along": {"column": "columns"}.get(given.get("fisher_slice_mode", ""), "rows"),
                    "blocks": given.get("fisher_slice_blocks", 4),
                },
            },
            "drift": drift,
            "freeze": {"threshold": given["js_variance_lambda"], "every": given["freeze_interval"]},
        }
    )


def recorded_name(run: Recorded, groups: list[Group]) -> list[str]:
    """The recorded name of each group, found by what it covers."""
    by_place = {(parameter, tuple(map(tuple, runs))): name for name, (parameter, runs) in run.facts["chunks"].items()}
    names = []
    for group in groups:
        (member,) = group.members
        whole = member.stop - member.start == member.shape[member.dim]
        spans: list[tuple[Any, Any]] = [(None, None)] * len(member.shape)
        candidates = [tuple(spans)] if whole else []
        spans[member.dim] = (member.start, member.stop)
        candidates.append(tuple(spans))
        names.append(next(by_place[member.parameter, place] for place in candidates if (member.parameter, place) in by_place))
    return names


@pytest.mark.parametrize("name", RUNS)
def test_groups_are_the_recorded_ones(name: str) -> None:
    run = recorded(name)
    groups = build_groups(run.network(), spec_of(run).fisher.groups)
    assert sorted(recorded_name(run, groups)) == sorted(run.facts["chunks"])


@pytest.mark.parametrize("mode", ["log", "raw"])
def test_distances(mode: str) -> None:
    pairs = np.load(DATA / "js.npz")
    expected = pairs[f"js_{mode}"]
    found = [js_distance(pairs[f"{i}/ref"], pairs[f"{i}/cur"], mode=mode) for i in range(len(expected))]  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


class Replay:
    """A task that replays the recorded batches."""

    metrics: ClassVar = {"loss": "minimize"}

    def __init__(self, run: Recorded) -> None:
        self.run = run

    def build_model(self) -> nn.Module:
        return self.run.network()

    def train_set(self) -> "Replay":
        return self

    def __len__(self) -> int:
        return self.run.facts["steps"] * self.run.facts["batch"]

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])


class RecordedOrder:
    def __init__(self, run: Recorded) -> None:
        self.run = run

    def batch(self, step: int) -> Batch:
        return self.run.batch(step)


def trainer_of(run: Recorded, events: list[Any]) -> Trainer:
    job = RunJob(study="parity", run="run-s0", trial=None, seed=0, role="single", spec=spec_of(run), directory="unused")
    trainer = Trainer(job, Replay(run), device=CPU, stop_request=lambda: None, emit=events.append)  # type: ignore[arg-type]
    trainer.order = RecordedOrder(run)  # type: ignore[assignment]
    return trainer


@pytest.mark.parametrize("name", RUNS)
def test_fisher_values(name: str) -> None:
    """At the first step: the weights are equal, so the Fisher must be; all parameters, zero ones included."""
    run = recorded(name)
    model, formulas = run.network().train(), ReleasedFormulas()
    groups = build_groups(model, spec_of(run).fisher.groups)
    collector = Collector(model, groups, formulas)
    x, y = run.batch(0)
    collector.arm(list(collector.layers), Share(len(x)))
    functional.cross_entropy(model(x), y).backward()
    (raw,) = finished_states(collector.take(), collector.layers, formulas, (1,))
    state = State(RunningAverage("reset", 0.2).update(raw), NOTHING)
    covered = 0
    for group in groups:
        (member,) = group.members
        expected = run.arrays[f"fisher/0/{member.parameter}"].reshape(member.shape)[member.index].ravel()
        if group.layer in collector.layers:
            np.testing.assert_allclose(group_values(group, state, factored=True), expected, rtol=1e-4)
            covered += 1
        else:
            assert not expected.any()
    assert covered > 30


@pytest.mark.parametrize("name", RUNS)
def test_smoothing_scores_and_decisions_on_the_recorded_distances(name: str) -> None:
    """d̂ is inverted to the distances it was made of; from there on everything is exact."""
    run = recorded(name)
    spec = spec_of(run)
    names = list(run.facts["js"][0]["js_ema"])
    model = run.network()
    sizes = dict(zip(recorded_name(run, groups := build_groups(model, spec.fisher.groups)), [g.elements for g in groups], strict=True))
    elements = np.array([sizes[group] for group in names])
    active = np.ones(len(names), bool)
    history = rules.begin(rules.DriftHistory.empty(len(names)), active)
    policy = FisherDrift(spec.freeze, bury_dead=True)
    updates = {entry["step"]: entry["js_ema"] for entry in run.facts["js"]}
    decisions = {entry["step"]: entry for entry in run.facts["freezes"]}
    decided = 0
    for step in range(1, run.facts["steps"]):
        if step in updates:
            smoothed = np.array([updates[step].get(group, np.nan) for group in names])
            measured = active & np.isfinite(smoothed)
            distance = (smoothed - 0.9 * history.smoothed) / (1.0 - 0.9)
            history = rules.observe(history, np.where(measured, distance, 0.0), measured, 0.9, corrected=False)
            np.testing.assert_allclose(history.smoothed[measured], smoothed[measured], rtol=0, atol=1e-12)
        if step in decisions:
            scores = rules.score(history, spec.drift.score)
            entry = decisions[step]
            expected = np.array([entry["scores"].get(group, np.nan) for group in names])
            np.testing.assert_allclose(scores[active], expected[active], rtol=0, atol=1e-12)
            errors, unknown = np.zeros_like(scores), np.full_like(scores, np.nan)
            decision = policy.decide(Observation(step, decided, scores, errors, ~active, active, elements, unknown, unknown, unknown))
            active = active & ~decision.freeze
            assert {group for group, on in zip(names, active, strict=True) if on} == set(kept(entry))
            decided += 1
    assert decided == len(run.facts["freezes"])


def kept(entry: dict[str, Any]) -> list[str]:
    found = entry.get("kept", entry.get("kept_chunks"))
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_whole_run(name: str) -> None:
    """Trained by the engine from the recorded start on the recorded batches: first kept set equal, final loss within 2 %."""
    run = recorded(name)
    events: list[Any] = []
    trainer = trainer_of(run, events)
    torch.set_num_threads(1)
    names = recorded_name(run, trainer.freezer.groups)
    compared, states = 0, watched_states(trainer.freezer.meter)
    for step in range(run.facts["steps"]):
        active = trainer.freezer.entries.active.copy()
        assert trainer.step() is None
        if f"fisher/{step}/head.weight" in run.arrays:
            compared += assert_fisher_is_recorded(run, trainer, states[-1], step, active)
    assert compared == 3
    freezes = [event for event in events if isinstance(event, Freeze)]
    assert {names[group] for group in freezes[0].frozen} == set(run.facts["zero_fisher_frozen"])
    frozen = {group for freeze in freezes[:2] for group in freeze.frozen}
    assert {group for index, group in enumerate(names) if index not in frozen} == set(kept(run.facts["freezes"][0]))
    losses = [event.loss for event in events if isinstance(event, Step)]
    np.testing.assert_allclose(losses[:10], run.arrays["loss"][:10], rtol=1e-4)
    assert losses[-1] == pytest.approx(float(run.arrays["loss"][-1]), rel=0.02)
    first = next(event for event in events if isinstance(event, Drift) and event.update == 1)
    recorded_first = run.facts["js"][1]["js_ema"]
    for group, smoothed in zip(names, first.smoothed, strict=True):
        if smoothed is not None:
            assert smoothed == pytest.approx(recorded_first[group], abs=0.01)  # factor bits may move a value over a bin's edge


def assert_fisher_is_recorded(run: Recorded, trainer: Trainer, states: list[State], step: int, active: Any) -> bool:
    """Of all groups with factors at one of the first three updates, as the run itself has them."""
    meter = trainer.freezer.meter
    (state,) = states
    for index in np.flatnonzero(active & meter.factored).tolist():
        group = trainer.freezer.groups[index]
        (member,) = group.members
        expected = run.arrays[f"fisher/{step}/{member.parameter}"].reshape(member.shape)[member.index].ravel()
        np.testing.assert_allclose(group_values(group, state, factored=True), expected, rtol=1e-4)
    return True


def test_the_network_is_the_recorded_one() -> None:
    run = recorded("row_tv")
    sizes = {name: parameter.numel() for name, parameter in ParityNetwork().named_parameters()}
    assert sizes == {name: run.arrays[f"init/{name}"].size for name in sizes}
