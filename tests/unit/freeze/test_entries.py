"""Frozen entries do not move, to the bit, with any optimizer; active ones move as if nothing was frozen."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fat_ray.fisher.groups import build_groups
from fat_ray.freeze.entries import ActiveEntries
from fat_ray.spec.run import GroupSpec

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.5),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def train_step(model: nn.Module, entries: ActiveEntries | None, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    if entries is None:
        optimizer.step()
        return
    entries.mask_gradients()
    with entries.protect():
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_entries_are_unchanged_to_the_bit(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    groups = build_groups(model, GroupSpec(blocks=4, min_block=1))
    entries = ActiveEntries(model, optimizer, groups)
    for seed in range(3):  # momentum builds up before anything freezes
        train_step(model, entries, optimizer, seed)
    entries.freeze(np.array([True, False, True, False, True, True, True, True]))
    before = copy.deepcopy(model.state_dict())
    for seed in range(3, 8):
        train_step(model, entries, optimizer, seed)
    after = model.state_dict()
    frozen_rows = torch.tensor([True, True, False, False, True, True, False, False])
    for key in ("0.weight", "0.bias"):
        assert torch.equal(after[key][frozen_rows], before[key][frozen_rows])
        assert not torch.isclose(after[key][~frozen_rows], before[key][~frozen_rows]).any()
    assert torch.equal(after["2.weight"], before["2.weight"])
    assert torch.equal(after["2.bias"], before["2.bias"])


def test_without_frozen_groups_nothing_differs_from_plain_training() -> None:
    plain, watched = network(), network()
    plain_optimizer, optimizer = OPTIMIZERS["adamw"](plain.parameters()), OPTIMIZERS["adamw"](watched.parameters())
    entries = ActiveEntries(watched, optimizer, build_groups(watched, GroupSpec(blocks=4, min_block=1)))
    for seed in range(4):
        train_step(plain, None, plain_optimizer, seed)
        train_step(watched, entries, optimizer, seed)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_a_wholly_frozen_tensor_leaves_autograd_and_optimizer() -> None:
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    entries = ActiveEntries(model, optimizer, build_groups(model, GroupSpec(blocks=4, min_block=1)))
    train_step(model, entries, optimizer, 0)
    assert not entries.freeze(np.array([True] + [False] * 7))  # two of eight rows: the tensor stays in autograd
    assert entries.freeze(np.array([False, True, True, True] + [False] * 4))
    frozen = model.get_parameter("0.weight")
    assert not frozen.requires_grad
    assert frozen.grad is None
    assert all(parameter is not frozen for group in optimizer.param_groups for parameter in group["params"])
    assert frozen not in optimizer.state
    assert entries.active_elements == 4 * 8 + 4
    assert entries.active_layers() == {"2"}


def test_masked_gradients_count_active_entries_only() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    entries = ActiveEntries(model, optimizer, build_groups(model, GroupSpec(blocks=4, min_block=1)))
    entries.freeze(np.array([True] + [False] * 7))
    model(torch.randn(5, 6)).square().mean().backward()
    entries.mask_gradients()
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    assert not gradient[:2].any()
    assert gradient[2:].any()


def test_the_active_set_only_shrinks() -> None:
    model = network()
    entries = ActiveEntries(model, OPTIMIZERS["sgd"](model.parameters()), build_groups(model, GroupSpec(blocks=4, min_block=1)))
    entries.freeze(np.array([True] + [False] * 7))
    with pytest.raises(ValueError, match=r"groups \[0\] are frozen already"):
        entries.freeze(np.array([True] + [False] * 7))


def test_groups_that_are_no_partition_are_refused() -> None:
    model = network()
    groups = build_groups(model, GroupSpec(blocks=4, min_block=1))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ValueError, match=r"do not cover the 8 rows or columns of 0\.weight exactly once"):
        ActiveEntries(model, optimizer, groups[1:])
    with pytest.raises(ValueError, match="exactly once"):
        ActiveEntries(model, optimizer, [*groups, groups[0]])
