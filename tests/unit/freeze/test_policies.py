"""What each policy freezes, against its rule written a second time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from fat_ray.errors import PolicyError
from fat_ray.fisher.groups import build_groups
from fat_ray.freeze.context import PolicyContext, describe, group_spec
from fat_ray.freeze.policies import build_policy
from fat_ray.freeze.policy import Floats, Observation
from fat_ray.spec.run import FreezeSpec, GroupSpec

STEPS = 60


class Encoder(nn.Module):
    """Convolutions, norms, attention and a recurrent layer: parameters of many roles."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.recurrent = nn.GRU(8, 4)
        self.token = nn.Parameter(nn.init.zeros_(nn.Linear(8, 1).weight.detach()))


def network() -> nn.Module:
    return nn.ModuleDict({"encoder": Encoder(), "decoder": nn.Linear(4, 4), "classify": nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))})


def context_of(model: nn.Module, spec: FreezeSpec, steps: int | None = STEPS) -> PolicyContext:
    return describe(model, build_groups(model, group_spec(spec, GroupSpec(blocks=2))), spec, steps=steps)


def observe(context: PolicyContext, step: int, **known: Any) -> Observation:
    """All groups active and nothing measured but what is given."""
    nothing = np.full(len(context.groups), np.nan)
    none = np.zeros(len(context.groups), bool)
    return replace(Observation(step, 0, nothing, nothing, none, ~none, context.elements, nothing, nothing, nothing), **known)


def kept(policy: str, **fields: Any) -> set[str]:
    """Names of the groups that stay active after step 0."""
    spec = FreezeSpec(policy=policy, **fields)
    context = context_of(network(), spec)
    freeze = build_policy(spec, context).decide(observe(context, 0)).freeze
    return {group.name for group, frozen in zip(context.groups, freeze, strict=True) if not frozen}


HEAD = {"classify.0", "classify.1"}
BIASES = {
    "encoder.conv.bias[0:4]", "encoder.conv.bias[4:8]", "encoder.norm.bias[0:4]", "encoder.norm.bias[4:8]",
    "encoder.attention.in_proj_bias[0:12]", "encoder.attention.in_proj_bias[12:24]",
    "encoder.attention.out_proj.bias[0:4]", "encoder.attention.out_proj.bias[4:8]",
    "encoder.recurrent.bias_ih_l0[0:6]", "encoder.recurrent.bias_ih_l0[6:12]",
    "encoder.recurrent.bias_hh_l0[0:6]", "encoder.recurrent.bias_hh_l0[6:12]",
    "decoder.bias", "classify.0.bias", "classify.1.bias",
}  # fmt: skip


def test_head_only_keeps_the_head() -> None:
    assert kept("head_only") == HEAD
    assert kept("head_only", head=["decoder", "classify.1"]) == {"decoder", "classify.1"}


def test_bitfit_keeps_every_bias_and_the_head() -> None:
    assert kept("bitfit", train_head=False) == BIASES
    assert kept("bitfit") == BIASES | {"classify.0.weight", "classify.1.weight"}


def test_bitfit_keeps_no_weight_that_cannot_freeze_without_its_bias() -> None:
    spec, model = FreezeSpec(policy="bitfit", train_head=False), nn.Sequential(nn.Linear(4, 4), nn.PReLU())
    context = describe(model, build_groups(model, GroupSpec()), spec)
    assert {member.role for member in context.groups[0].members} == {"weight", "bias"}
    with pytest.raises(PolicyError, match="no group would stay active"):
        build_policy(spec, context)


def test_norm_only_keeps_the_norms_and_the_head() -> None:
    assert kept("norm_only", train_head=False) == {"encoder.norm", "classify.0"}
    assert kept("norm_only") == {"encoder.norm"} | HEAD


class RMSNorm2d(nn.Module):
    """A norm that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight.detach()[0]))


class NormedLinear(nn.Linear):
    """No norm, whatever it is called: it owns a matrix."""


def test_norms_are_known_by_class_or_by_name_if_they_own_vectors_only() -> None:
    model = nn.Sequential(RMSNorm2d(), NormedLinear(2, 2), nn.InstanceNorm2d(2, affine=True), nn.GroupNorm(1, 2), nn.LayerNorm((2, 2)))
    assert context_of(model, FreezeSpec()).norms == {"0", "2", "3", "4"}


@pytest.mark.parametrize(("policy", "fields"), [("norm_only", {"train_head": False}), ("lora", {"train_head": False})])
def test_a_policy_that_would_keep_nothing_is_refused(policy: str, fields: dict[str, Any]) -> None:
    spec, model = FreezeSpec(policy=policy, **fields), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(PolicyError, match=f"freeze.policy = {policy}: no group would stay active"):
        build_policy(spec, context_of(model, spec))


class Declared(nn.Sequential):
    head_modules = ("0", "2.1")


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (network(), ("classify",)),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ("0",)),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))), nn.Flatten()), ("0.1",)),
        (nn.Linear(2, 2), ("",)),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(requires_grad=False)), ("0",)),
        (Declared(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), ("0", "2.1")),
    ],
)
def test_the_head_is_what_the_model_says_or_its_last_part(model: nn.Module, head: tuple[str, ...]) -> None:
    context = context_of(model, FreezeSpec())
    assert context.head == head
    assert any(context.in_head(group.layer) for group in context.groups)


def test_a_head_that_is_not_there_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"freeze\.head: 'clas' is no module .* modules at the top: encoder, decoder, classify"):
        context_of(network(), FreezeSpec(head=["clas"]))
    with pytest.raises(PolicyError, match="the model's head_modules: '0' is no module"):
        context_of(Declared(nn.ReLU(), nn.Linear(2, 2)), FreezeSpec())


@pytest.mark.parametrize(("every", "warmup", "until", "final"), [(5, 10, 0.75, 0.2), (1, 0, 1.0, 0.0), (7, 20, 0.1, 0.5)])
def test_the_linear_schedule_freezes_the_front_down_to_its_line(every: int, warmup: int, until: float, final: float) -> None:
    spec = FreezeSpec(policy="linear_schedule", every=every, warmup_steps=warmup, until=until, final_active=final)
    context = context_of(network(), spec)
    policy, active, total = build_policy(spec, context), np.ones(len(context.groups), bool), context.elements.sum()
    for step in filter(policy.is_due, range(STEPS)):
        assert step >= warmup
        assert step % every == 0
        active &= ~policy.decide(observe(context, step, active=active)).freeze
        assert np.all(np.diff(active.astype(int)) >= 0)  # what is frozen lies in front
        share = np.clip((step - warmup) / max(until * STEPS - warmup, 1e-9), 0, 1)
        target = total * (1 - share * (1 - final))
        left = context.elements[active]
        assert left.size == 1 or left.sum() >= target > left.sum() - left[0] or left.sum() == target
    assert active.sum() >= 1


@pytest.mark.parametrize("cubed", [True, False])
def test_freezeout_freezes_layers_when_their_cosine_ends(cubed: bool) -> None:
    spec = FreezeSpec(policy="freezeout", first_freeze=0.5, cubed=cubed, scaled=False)
    context = context_of(network(), spec)
    policy, num_layers = build_policy(spec, context), len(context.layers)
    times = [(0.5 + 0.5 * index / (num_layers - 1)) ** (3 if cubed else 1) for index in range(num_layers)]
    for step in range(STEPS):
        factors = policy.lr_factors(step)
        assert factors is not None
        for group, factor in zip(context.groups, factors, strict=True):
            time = times[context.layers.index(group.layer)] * STEPS
            assert factor == pytest.approx(0.5 * (1 + np.cos(np.pi * step / time)) if step < time else 0.0, abs=1e-9)
        frozen = policy.decide(observe(context, step)).freeze
        assert frozen.tolist() == [bool(times[depth] * STEPS <= step + 1e-6) for depth in context.depth]
        previous = policy.decide(observe(context, step - 1)).freeze
        assert policy.is_due(step) == (frozen != previous).any()


def test_freezeout_freezes_at_whole_steps_however_they_round() -> None:
    """0.55 of 100 steps is 55, though 0.55 * 100 is a little more."""
    spec = FreezeSpec(policy="freezeout", first_freeze=0.55, cubed=False)
    policy = build_policy(spec, context_of(nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))), spec, steps=100))
    assert [step for step in range(102) if policy.is_due(step)] == [55, 70, 85]


def test_freezeout_scaled_lets_all_layers_go_as_far() -> None:
    spec = FreezeSpec(policy="freezeout", first_freeze=0.5)
    context = context_of(network(), spec, steps=4000)
    policy = build_policy(spec, context)
    total: Floats = np.sum([policy.lr_factors(step) for step in range(4000)], axis=0)
    np.testing.assert_allclose(total, 2000, rtol=3e-3)


def test_gradual_unfreeze_thaws_from_the_head_downwards() -> None:
    spec = FreezeSpec(policy="gradual_unfreeze", thaw_every=10, stages=3)
    context = context_of(network(), spec)
    policy = build_policy(spec, context)
    active = np.ones(len(context.groups), bool)
    stages: list[set[str]] = []
    for step in filter(policy.is_due, range(STEPS)):
        decision = policy.decide(observe(context, step, active=active))
        before, active = active, active & ~decision.freeze
        if decision.thaw is not None:
            active = active | decision.thaw
        stages.append({context.groups[index].layer for index in np.flatnonzero(active & (~before | (step == 0)))})
        assert step == 10 * (len(stages) - 1)
    assert stages == [
        {"classify.0", "classify.1"},
        {"decoder", "encoder.recurrent", "encoder.attention.out_proj"},
        {"encoder.attention", "encoder.norm"},
        {"encoder.conv", "encoder"},
    ]
    assert active.all()


def test_gradient_norm_freezes_the_settled_front() -> None:
    spec = FreezeSpec(policy="gradient_norm", percentile=50, floor=0.0)
    context = context_of(nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), spec)
    policy = build_policy(spec, context)
    before = np.array([3.0, 4.0] * 5)  # two groups per layer: its norm is 5
    change = {0: 0.1, 1: 0.2, 2: 0.5, 3: 0.05, 4: 0.6}  # median 0.2: layers 0 and 3 lie below, and 3 is behind 1
    now = before * np.array([1 - change[depth] for depth in context.depth])
    decision = policy.decide(observe(context, 24, previous_gradient_norm=before, gradient_norm=now))
    assert decision.freeze.tolist() == [True, True] + [False] * 8
    assert decision.threshold == pytest.approx(0.2)
    later = policy.decide(observe(context, 36, previous_gradient_norm=before, gradient_norm=now, active=~decision.freeze))
    assert later.threshold == pytest.approx((0.2 + 0.5) / 2)
    assert later.freeze.tolist() == [False, False, True, True] + [False] * 6


def test_gradual_unfreeze_needs_groups_in_the_head() -> None:
    spec = FreezeSpec(policy="gradual_unfreeze")
    with pytest.raises(PolicyError, match="no group lies in the head absent"):
        build_policy(spec, replace(context_of(network(), spec), head=("absent",)))


def test_gradient_norm_looks_at_active_groups_only() -> None:
    spec = FreezeSpec(policy="gradient_norm", percentile=100, floor=0.0)
    context = context_of(nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))), spec)
    active = np.array([False, True, True, True, True, True])
    before = np.where(active, 1.0, np.nan)
    now = before * np.array([1.0, 0.9, 0.8, 0.8, 0.5, 0.5])
    decision = build_policy(spec, context).decide(observe(context, 24, previous_gradient_norm=before, gradient_norm=now, active=active))
    assert decision.freeze.tolist() == [False, True, True, True, False, False]


def test_gradient_norm_keeps_the_floor_and_waits_for_a_second_look() -> None:
    spec = FreezeSpec(policy="gradient_norm", percentile=100, floor=0.5)
    context = context_of(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), spec)
    policy, before = build_policy(spec, context), np.ones(8)
    first = policy.decide(observe(context, 12, gradient_norm=before))
    assert not first.freeze.any()
    assert first.threshold is None
    now = before * np.array([0.9] * 6 + [0.1] * 2)
    second = policy.decide(observe(context, 24, previous_gradient_norm=before, gradient_norm=now))
    assert context.layers[-1] == "3"
    assert second.freeze.tolist() == [True] * 4 + [False] * 4


def test_fish_mask_keeps_the_largest_that_fit() -> None:
    spec = FreezeSpec(policy="fish_mask", keep=0.5, warmup_steps=3)
    context = context_of(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 4)), spec)
    policy, rng = build_policy(spec, context), np.random.default_rng(0)
    assert [step for step in range(20) if policy.is_due(step)] == [3]
    for _ in range(20):
        fisher = rng.lognormal(size=len(context.groups))
        stay, budget = [], 0.5 * context.elements.sum()
        for group in sorted(range(len(fisher)), key=lambda index: -fisher[index]):
            if not stay or context.elements[[*stay, group]].sum() <= budget:
                stay.append(group)
        freeze = policy.decide(observe(context, 3, fisher=fisher)).freeze
        assert np.flatnonzero(~freeze).tolist() == sorted(stay)


def test_random_matched_without_a_schedule_is_refused() -> None:
    spec = FreezeSpec(policy="random_matched")
    with pytest.raises(PolicyError, match="needs a recorded schedule to follow"):
        build_policy(spec, context_of(network(), spec))
