"""What every freezing policy promises, those of users included: pure decisions that can always be carried out.

A policy of your own is tested the same way: add its `module:function` to `POLICIES_UNDER_TEST`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fat_ray.errors import PolicyError
from fat_ray.fisher.groups import Group, build_groups
from fat_ray.freeze.context import PolicyContext, describe, group_spec
from fat_ray.freeze.policies import build_policy
from fat_ray.freeze.policy import Bools, Decision, Floats, Observation, Policy
from fat_ray.spec.policy import POLICIES
from fat_ray.spec.run import FreezeSpec, GroupSpec

OWN = ("tests.support.own_policies:alternate", "tests.support.own_policies:smallest_gradient")
POLICIES_UNDER_TEST = (*POLICIES, *OWN)
STEPS = 40
MEASURED = {"drift": ("scores", "errors", "dead"), "gradient_norm": ("gradient_norm", "previous_gradient_norm"), "fisher": ("fisher",)}

pytestmark = pytest.mark.parametrize("name", POLICIES_UNDER_TEST)


def spec_of(name: str) -> FreezeSpec:
    return FreezeSpec(policy=name, threshold=0.2, every=4, warmup_steps=4, floor=0.1, keep=0.3, thaw_every=5, first_freeze=0.4)


def adapted(layer: nn.Linear) -> nn.Module:
    """A layer with the names that peft gives its parts."""
    adapters = {"lora_A": nn.Linear(layer.in_features, 2, bias=False), "lora_B": nn.Linear(2, layer.out_features, bias=False)}
    return nn.ModuleDict({"base_layer": layer, **adapters})


def network() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), adapted(nn.Linear(8, 12)), nn.LayerNorm(12), nn.Linear(12, 8))
    return nn.Sequential(body, nn.Linear(8, 3))


def context_of(name: str, *, steps: int | None = STEPS) -> PolicyContext:
    spec, model = spec_of(name), network()
    groups = build_groups(model, group_spec(spec, GroupSpec(blocks=3, min_block=2)))
    total = sum(group.elements for group in groups)
    follow = [(step, total * (STEPS - step) // STEPS) for step in range(0, STEPS, 8)]
    return describe(model, groups, spec, steps=steps, seed=3, follow=follow, bury_dead=True)


def lone_group(context: PolicyContext) -> PolicyContext:
    """The same for a model that is one group."""
    (group,) = build_groups(nn.Sequential(nn.Linear(2, 2)), GroupSpec(blocks=1))
    return replace(context, groups=(Group(group.name, group.layer, group.kind, group.members),), head=("0",), norms=frozenset())


@dataclass(frozen=True)
class Measurements:
    """What is observed at each step: random, the same for the same seed."""

    seed: int
    known: float

    def at(self, step: int, event: int, active: Bools, context: PolicyContext, previous: Floats) -> Observation:
        rng = np.random.default_rng((self.seed, step))
        size = active.size
        scores, norm, fisher = (np.where(rng.random(size) < self.known, rng.lognormal(size=size), np.nan) for _ in range(3))
        errors = np.where(rng.random(size) < 0.8, rng.random(size), np.inf)
        norm, fisher = (np.where(active, values, np.nan) for values in (norm, fisher))
        dead = np.random.default_rng(self.seed).random(size) < 0.2
        observation = Observation(step, event, scores, errors, dead, active.copy(), context.elements, norm, previous, fisher)
        for values in vars(observation).values():
            if isinstance(values, np.ndarray):
                values.setflags(write=False)
        return observation


def run(policy: Policy, context: PolicyContext, measurements: Measurements) -> Iterator[tuple[Observation, Decision, Bools]]:
    """Observation, decision and active groups after it, at every due step of a run."""
    active, event = np.ones(len(context.groups), bool), 0
    previous = np.full(active.size, np.nan)
    for step in range(STEPS):
        if policy.is_due(step):
            observation = measurements.at(step, event, active, context, previous)
            decision = policy.decide(observation)
            active = active & ~decision.freeze
            if decision.thaw is not None:
                active = active | decision.thaw
            yield observation, decision, active
            previous, event = observation.gradient_norm, event + 1


def shared(decision: Decision) -> str:
    """What ranks compare and records hold; fails on anything that JSON does not know."""
    thaw = None if decision.thaw is None else np.flatnonzero(decision.thaw).tolist()
    return json.dumps([np.flatnonzero(decision.freeze).tolist(), thaw, decision.threshold, decision.limited_by], allow_nan=False)


RUNS = st.builds(Measurements, st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.7, 0.2]))
few = settings(max_examples=25, deadline=None)


@few
@given(measurements=RUNS)
def test_decisions_can_always_be_carried_out(name: str, measurements: Measurements) -> None:
    """Never what is frozen already, never everything, nothing to thaw that is active."""
    context = context_of(name)
    for observation, decision, after in run(build_policy(spec_of(name), context), context, measurements):
        assert decision.freeze.dtype == np.bool_
        assert decision.freeze.shape == observation.active.shape
        assert not (decision.freeze & ~observation.active).any()
        if decision.thaw is not None:
            assert decision.thaw.dtype == np.bool_
            assert decision.thaw.shape == observation.active.shape
            assert not (decision.thaw & observation.active).any()
        assert context.elements[after].sum() > 0
        assert decision.limited_by in ("", "floor", "cap")


@few
@given(measurements=RUNS)
def test_the_same_observation_gives_the_same_decision(name: str, measurements: Measurements) -> None:
    """Asked again, asked after others, and asked of another rank's policy: nothing is remembered, nothing depends on the process."""
    context = context_of(name)
    policy, other = build_policy(spec_of(name), context), build_policy(spec_of(name), context_of(name))
    seen = list(run(policy, context, measurements))
    for observation, decision, _ in reversed(seen):
        assert shared(policy.decide(observation)) == shared(decision)
        assert shared(other.decide(observation)) == shared(decision)
        assert policy.decide(observation).freeze.tobytes() == decision.freeze.tobytes()


@few
@given(measurements=RUNS)
def test_what_is_not_needed_is_not_looked_at(name: str, measurements: Measurements) -> None:
    context = context_of(name)
    policy = build_policy(spec_of(name), context)
    assert policy.needs <= MEASURED.keys()
    blank = {field: np.full(len(context.groups), np.nan) for need in MEASURED.keys() - policy.needs for field in MEASURED[need]}
    for observation, decision, _ in run(policy, context, measurements):
        unmeasured = {key: value.astype(bool) if key == "dead" else value for key, value in blank.items()}
        assert shared(policy.decide(replace(observation, **unmeasured))) == shared(decision)


def test_without_any_measurement_only_what_needs_none_freezes(name: str) -> None:
    context = context_of(name)
    policy = build_policy(spec_of(name), replace(context, bury_dead=False))
    for _, decision, _ in run(policy, context, Measurements(seed=0, known=0.0)):
        assert not (policy.needs and decision.freeze.any())


def test_a_lone_group_stays(name: str) -> None:
    context = lone_group(context_of(name))
    policy = build_policy(spec_of(name), context)
    for observation, decision, after in run(policy, context, Measurements(seed=1, known=1.0)):
        assert after.all()
        assert not (decision.freeze & ~observation.active).any()


def test_due_steps_depend_on_the_step_alone(name: str) -> None:
    context = context_of(name)
    first, second = (build_policy(spec_of(name), context) for _ in range(2))
    forwards = [first.is_due(step) for step in range(STEPS)]
    assert [second.is_due(step) for step in reversed(range(STEPS))][::-1] == forwards
    assert all(isinstance(due, bool) for due in forwards)
    assert any(forwards) is (name != "none")


def test_learning_rate_factors_are_usable_and_zero_only_for_what_is_frozen(name: str) -> None:
    context = context_of(name)
    policy = build_policy(spec_of(name), context)
    frozen_at = {observation.step: ~after for observation, _, after in run(policy, context, Measurements(seed=2, known=1.0))}
    frozen = np.zeros(len(context.groups), bool)
    for step in range(STEPS):
        frozen = frozen_at.get(step, frozen)
        factors = policy.lr_factors(step)
        if factors is not None:
            assert factors.shape == frozen.shape
            assert np.isfinite(factors).all()
            assert (factors >= 0).all()
            assert not ((factors == 0) & ~frozen).any()


def test_a_run_of_unknown_length_is_served_or_refused_by_name(name: str) -> None:
    if name in ("linear_schedule", "freezeout"):
        with pytest.raises(PolicyError, match=f"{name} needs the number of steps of the whole run; give steps"):
            build_policy(spec_of(name), context_of(name, steps=None))
    else:
        assert build_policy(spec_of(name), context_of(name, steps=None)).is_due(0) in (True, False)


def test_every_policy_freezes_something_in_this_network_but_none(name: str) -> None:
    """Or the promises above would be empty."""
    context = context_of(name)
    decisions = [decision for _, decision, _ in run(build_policy(spec_of(name), context), context, Measurements(seed=4, known=1.0))]
    assert any(decision.freeze.any() for decision in decisions) is (name != "none")
