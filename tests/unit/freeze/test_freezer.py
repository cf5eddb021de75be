"""What the Freezer shows its policy, what it does with the answer, and how it refuses a wrong specification."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from fat_ray.errors import PolicyError, SpecError
from fat_ray.events import Freeze
from fat_ray.fisher.collector import Share
from fat_ray.freeze.freezer import Freezer
from tests.support.scripted import Scripted

SPEC = {"fisher": {"groups": {"blocks": 2, "min_block": 1}}}
NEEDS = frozenset({"gradient_norm", "fisher"})


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1, 1, 0])


def entries_of(freezer: Freezer, group: int, tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[member.parameter][member.index].flatten() for member in freezer.groups[group].members])


def diagonal_fisher(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """S ⊗ H of the Linear layers by their definition, and the squared gradient of the rest."""
    kept: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            kept[f"{name} in"] = inputs[0].detach().square().mean(0)
            output.register_hook(lambda g: kept.update({f"{name} out": (len(x) * g).square().mean(0)}))

        return hook

    handles = [model[i].register_forward_hook(watch(str(i))) for i in (0, 2)]
    model.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    for handle in handles:
        handle.remove()
    found = {"1.weight": model[1].weight.grad.square()}
    for name in ("0", "2"):
        found |= {f"{name}.weight": torch.outer(kept[f"{name} out"], kept[f"{name} in"]), f"{name}.bias": kept[f"{name} out"]}
    return found


@pytest.mark.parametrize(("scale", "parts", "mean_over_step"), [(1.0, 1, True), (256.0, 1, True), (256.0, 3, True), (8.0, 2, False)])
def test_policies_see_gradients_and_fisher_whatever_the_loss_scale_and_the_micro_batches(
    scale: float, parts: int, *, mean_over_step: bool
) -> None:
    model, (x, y) = network(), batch()
    fisher = diagonal_fisher(model, x, y)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    policy = Scripted({}, NEEDS)
    freezer = Freezer(model, optim.SGD(model.parameters(), lr=0.1), SPEC, policy=policy)
    first, then = np.ones(len(freezer.groups), bool), np.ones(len(freezer.groups), bool)
    first[0] = False
    policy.events = {0: first, 1: then}
    size = len(x) // parts
    for _ in range(2):
        model.zero_grad()
        for start in range(0, len(x), size):
            over = None if mean_over_step else size
            freezer.arm(Share(len(x), first=start, size=size, backward_over=over, loss_scale=scale))
            loss = functional.cross_entropy(model(x[start : start + size]), y[start : start + size])
            (loss * scale / (parts if mean_over_step else 1)).backward()
        freezer.after_backward()
    at_first, later = policy.seen
    for group in range(len(freezer.groups)):
        norm = entries_of(freezer, group, gradients).norm().item()
        assert at_first.gradient_norm[group] == pytest.approx(norm, rel=1e-5)
        assert at_first.fisher[group] == pytest.approx(entries_of(freezer, group, fisher).mean().item(), rel=1e-5)
        assert later.previous_gradient_norm[group] == at_first.gradient_norm[group]
        assert later.gradient_norm[group] == (pytest.approx(norm, rel=1e-5) if group else pytest.approx(np.nan, nan_ok=True))
    assert np.isnan(at_first.previous_gradient_norm).all()
    assert np.isnan(later.fisher[0])
    assert not np.isnan(later.fisher[1:]).any()


def test_nothing_is_collected_for_a_policy_that_needs_nothing() -> None:
    model, (x, _) = network(), batch()
    freezer = Freezer(model, optim.SGD(model.parameters(), lr=0.1), SPEC, policy=Scripted({}))
    freezer.arm(len(x))
    assert not any(module._forward_hooks for module in model.modules())
    model(x).sum().backward()
    assert not freezer.after_backward()


def test_thawing_factors_and_events() -> None:
    model, (x, y) = network(), batch()
    policy, events, optimizer = Scripted({}), list[Any](), optim.SGD(model.parameters(), lr=0.1)
    freezer = Freezer(model, optimizer, SPEC, policy=policy, emit=events.append)
    every = np.ones(len(freezer.groups), bool)
    policy.events = {0: np.arange(len(every)) > 1, 2: every}
    policy.factors = {3: np.where(np.arange(len(every)) == 0, 0.5, 1.0)}
    moves = []
    for _ in range(4):
        before = model.state_dict()["0.weight"].clone()
        freezer.arm(len(x))
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        assert freezer.after_backward() is (freezer.step - 1 in (0, 2))
        optimizer.step()
        moves.append(model.state_dict()["0.weight"] - before)
    assert not moves[0].any()
    assert not moves[1].any()
    assert not moves[2].any()  # what thaws has no gradient until the next backward
    gradient = model.get_parameter("0.weight").grad
    torch.testing.assert_close(moves[3][:2], -0.05 * gradient[:2])
    torch.testing.assert_close(moves[3][2:], -0.1 * gradient[2:])
    assert [(event.step, event.frozen, event.active_groups) for event in events if isinstance(event, Freeze)] == [
        (0, [0, 1], len(every) - 2),
        (2, [], len(every)),
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"fisher": {"evry": 3}}, "fisher.evry = 3: unknown key; did you mean every?"),
        ({"fisher": {"every": 0}, "freeze": {"cap": 2}}, "Freezer: 2 problems"),
        ({"train": {"lr": 1}}, "train: unknown key; known here: preset, fisher, drift, freeze"),
        (None, "spec = null: must be a section of keys"),
        ({"preset": []}, "preset: must be corrected, paper or released"),
        ({"drift": {"compare": "average"}}, "spec: drift.noise = swap compares two collections"),
    ],
)
def test_a_wrong_specification_is_refused_in_words(spec: Any, message: str) -> None:
    model = network()
    with pytest.raises(SpecError) as caught:
        Freezer(model, optim.SGD(model.parameters(), lr=0.1), spec)
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_policies_that_must_know_the_steps_are_told_them() -> None:
    model, spec = network(), {**SPEC, "freeze": {"policy": "linear_schedule", "every": 2, "warmup_steps": 0}}
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PolicyError, match="give steps, such as steps=1000"):
        Freezer(model, optimizer, spec)
    freezer = Freezer(model, optimizer, spec, steps=10)
    assert freezer.policy.is_due(4)
