"""A user's own policy: how it is found, and what it is told when it is wrong."""

import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from torch import nn

from fat_ray.errors import PolicyError
from fat_ray.fisher.groups import build_groups
from fat_ray.freeze import custom
from fat_ray.freeze.context import PolicyContext, describe
from fat_ray.freeze.policies import build_policy, check_policy
from fat_ray.freeze.policy import Observation
from fat_ray.spec import policy as policy_names
from fat_ray.spec.run import FreezeSpec, GroupSpec, MethodSpec
from tests.support.own_policies import Alternate

OWN = "tests.support.own_policies"


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))


def context_of(spec: FreezeSpec) -> PolicyContext:
    return describe(network(), build_groups(network(), GroupSpec(blocks=1)), spec)


def observation() -> Observation:
    nothing, active = np.full(2, np.nan), np.array([True, False])
    return Observation(8, 2, nothing, nothing, ~active & False, active, np.array([40, 36]), nothing, nothing, nothing)


def test_options_reach_the_function() -> None:
    spec = FreezeSpec(policy=f"{OWN}:alternate", options={"every": 3})
    policy = build_policy(spec, context_of(spec))
    assert [step for step in range(10) if policy.is_due(step)] == [0, 3, 6, 9]


def test_an_entry_point_is_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(**wanted: str) -> EntryPoints:
        return EntryPoints([EntryPoint("alternating", f"{OWN}:alternate", "fat_ray.policies")]).select(**wanted)

    monkeypatch.setattr(custom, "entry_points", entry_points)
    monkeypatch.setattr(policy_names, "entry_points", entry_points)
    spec = FreezeSpec(policy="alternating")
    policy = build_policy(spec, context_of(spec))
    assert isinstance(policy, custom.CustomPolicy)
    assert policy.decide(observation()).freeze.tolist() == Alternate(context_of(spec)).decide(observation()).freeze.tolist()
    with pytest.raises(ValidationError, match=r"random_matched, alternating, or module:function of your own; did you mean alternating\?"):
        FreezeSpec(policy="alternatin")


def test_a_specification_imports_no_code() -> None:
    FreezeSpec(policy="antigravity:fly")
    assert "antigravity" not in sys.modules


def test_an_entry_point_that_is_gone_is_named() -> None:
    spec = FreezeSpec().model_copy(update={"policy": "was_here"})
    with pytest.raises(PolicyError, match=r"freeze\.policy = was_here: no package installed here announces it"):
        build_policy(spec, context_of(spec))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", r"freeze\.policy = no_such_module:f: cannot import no_such_module .*PYTHONPATH"),
        (f"{OWN}:absent", f"freeze.policy = {OWN}:absent: module {OWN} has no absent"),
        (f"{OWN}:NOT_A_FUNCTION", "NOT_A_FUNCTION is not callable; it must be a function that returns a policy"),
        (f"{OWN}:returns_nothing", f"freeze.policy = {OWN}:returns_nothing returned a NoneType that lacks is_due, decide"),
        (f"{OWN}:fails", r"the call with the context failed: OSError: no file for 3 groups, at own_policies\.py:\d+"),
        (f"{OWN}:needs_magic", r"needs must be a frozenset of drift, fisher, gradient_norm, not frozenset\(\{'magic'\}\)"),
    ],
)
def test_what_is_no_policy_is_refused_before_a_run(name: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_policy(network(), MethodSpec(freeze=FreezeSpec(policy=name)), steps=10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none_left", "at step 8: nothing would stay active"),
        ("frozen_twice", r"at step 8: freeze names groups that are frozen already: \[1\]"),
        ("thawed_twice", r"at step 8: thaw names groups that are active already: \[0\]"),
        ("too_short", "freeze must be an array of 2 bools"),
        ("as_list", "freeze must be an array of 2 bools"),
        ("undecided", r"decide returned a NoneType, not a fat_ray\.freeze\.policy\.Decision"),
        ("breaks", r"decide failed: KeyError: 'rows', at own_policies\.py:\d+"),
    ],
)
def test_an_impossible_decision_is_named(name: str, message: str) -> None:
    spec = FreezeSpec(policy=f"{OWN}:{name}")
    policy = build_policy(spec, context_of(spec))
    with pytest.raises(PolicyError, match=f"freeze.policy = {OWN}:{name}: .*{message}"):
        policy.decide(observation())


@pytest.mark.parametrize("name", ["negative_factors", "one_factor"])
def test_impossible_factors_are_named(name: str) -> None:
    spec = FreezeSpec(policy=f"{OWN}:{name}")
    with pytest.raises(PolicyError, match="lr_factors must be an array of 2 finite floats of at least 0"):
        build_policy(spec, context_of(spec)).lr_factors(0)


def test_factors_are_optional() -> None:
    class Plain:
        def __init__(self, context: PolicyContext) -> None:
            self.alternate = Alternate(context)

        def __getattr__(self, name: str) -> Any:
            if name == "lr_factors":
                raise AttributeError(name)
            return getattr(self.alternate, name)

    policy = custom.CustomPolicy("plain", Plain(context_of(FreezeSpec())), frozenset(), 2)
    assert policy.lr_factors(0) is None
