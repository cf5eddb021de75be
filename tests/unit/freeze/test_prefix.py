"""Where the frozen prefix of a network ends, and how its modules are disguised and revealed."""

import copy
import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fat_ray.events import Notice
from fat_ray.freeze.freezer import Freezer
from fat_ray.freeze.prefix import PrefixMemory, Remembered, prefix_of
from tests.support.scripted import Scripted


class Blocks(nn.Module):
    """Blocks in a list, and something bare."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.position = nn.Parameter(torch.zeros(4))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def convolutions(dropout: float = 0.0) -> nn.Sequential:
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 2))
    return nn.Sequential(*layers)


def freeze(model: nn.Module, *paths: str) -> nn.Module:
    for path in paths:
        model.get_submodule(path).requires_grad_(requires_grad=False)
    return model


def found(model: nn.Module) -> tuple[list[str], str]:
    stretches, end = prefix_of(model)
    return [stretch.path for stretch in stretches], end


def test_the_prefix_ends_at_the_first_module_that_is_active_or_not_determined() -> None:
    assert found(convolutions()) == ([], "0 is active")
    model = freeze(convolutions(), "0", "1", "5")
    assert found(model) == (["[:1]"], "1 normalises by each batch (freeze.frozen_statistics: hold)")
    model[1].eval()
    assert found(model) == (["[:6]"], "6 is active")
    model[1].running_mean = None
    assert found(model)[0] == ["[:1]"]  # by each batch in any mode
    model[1].running_mean = torch.zeros(4)
    model[3].p = 0.5
    assert found(model) == (["[:3]"], "3 drops at random")
    model[1].register_forward_hook(lambda *_: None)
    assert found(model) == (["[:1]"], "1 has hooks")
    blocks = freeze(Blocks(), "embed", "blocks.0", "blocks.1.0", "blocks.2")
    blocks.blocks[1].append(nn.Linear(4, 4))
    assert found(blocks) == (["embed", "blocks.0", "blocks.1[:2]"], "blocks.1.2 is active")
    assert found(freeze(Blocks(), "embed", "blocks", "head"))[0] == ["embed", "blocks.0", "blocks.1", "blocks.2", "head"]
    wrapped = nn.Sequential(OrderedDict(inner=freeze(Blocks(), "embed"), after=nn.ReLU()))
    assert found(wrapped) == (["inner.embed"], "inner.blocks.0.0 is active")


def remembering(model: nn.Module) -> tuple[PrefixMemory, list[str]]:
    told: list[str] = []
    memory = PrefixMemory(model, 10**6, told.append)
    memory.plan()
    return memory, told


def test_what_is_remembered_outlives_an_event_and_is_dropped_with_its_module() -> None:
    model = freeze(Blocks(), "embed", "blocks.0")
    model.position.requires_grad_(requires_grad=False)
    memory, told = remembering(model)
    x = torch.randn(5, 3)
    memory.begin()
    before = model(x)
    used = memory.used
    assert used == 2 * x.shape[0] * 4 * 4
    memory.release()
    assert not any(isinstance(module, Remembered) for module in model.modules())
    memory.plan()
    assert memory.used == used
    memory.begin()
    assert torch.equal(model(x), before)
    assert [recall.spared for recall in memory.recalls] == [1, 1]
    memory.release()
    model.blocks[0].requires_grad_(requires_grad=True)
    memory.plan()
    assert memory.used == used / 2
    assert told == [
        "outputs of embed, blocks.0 are remembered; blocks.1.0 is active",
        "outputs of embed are remembered; blocks.0.0 is active",
    ]


def test_only_in_training_and_not_where_all_is_computed_anyhow() -> None:
    model = freeze(Blocks(), "embed")
    memory, _ = remembering(model)
    for train, computed in ((False, False), (True, True)):
        model.train(train)
        memory.begin()
        if computed:
            with memory.recomputed():
                model(torch.randn(2, 3))
        else:
            model(torch.randn(2, 3))
        assert memory.used == 0
    model(torch.randn(2, 3))
    assert memory.used


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), "file"])
def test_copies_are_plain(duplicate: object) -> None:
    model = freeze(convolutions(), "0", "1", "5")
    policy = Scripted({})
    spec = {"freeze": {"frozen_statistics": "hold", "cache_prefix_bytes": 10**6}}
    freezer = Freezer(model, torch.optim.SGD(model.parameters(), lr=0.1), spec, policy=policy)
    freezer.arm(2)
    x = torch.randn(2, 1, 4, 4)
    expected = model(x)
    assert [type(module).__name__ for module in (model, model[1])] == ["RememberedSequential", "HeldBatchNorm2d"]
    if duplicate == "file":
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = duplicate(model)  # type: ignore[operator]
    assert type(other) is nn.Sequential
    if duplicate is not copy.copy:
        assert [type(module) for module in other] == [type(module) for module in convolutions()]
    assert not {"recall", "first"} & vars(other).keys()
    assert torch.equal(other(x), expected)
    assert str(other).startswith("Sequential(")


def test_held_statistics_stand_still_until_the_norm_thaws() -> None:
    model = convolutions()
    norm = model[1]
    policy = Scripted({})
    spec = {"freeze": {"frozen_statistics": "hold"}, "fisher": {"groups": {"min_block": 1}}}
    freezer = Freezer(model, torch.optim.SGD(model.parameters(), lr=0.1), spec, policy=policy)
    is_norm = np.array([group.layer == "1" for group in freezer.groups])
    policy.events = {1: ~is_norm, 3: np.ones(len(is_norm), bool)}
    moved = []
    for _ in range(5):
        before = norm.running_mean.clone()
        model.train()
        freezer.arm(4)
        model(torch.randn(4, 1, 4, 4)).sum().backward()
        freezer.after_backward()
        moved.append(not torch.equal(norm.running_mean, before))
    assert moved == [True, True, False, False, True]
    assert type(norm) is nn.BatchNorm2d
    assert norm.training


def test_norms_that_were_never_trained_are_held_too_and_those_without_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.LayerNorm(3), nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3), nn.Linear(3, 2))
    freeze(model, "0", "1")
    spec = {"freeze": {"frozen_statistics": "hold"}}
    Freezer(model, torch.optim.SGD(model.parameters(), lr=0.1), spec)
    model.train()
    assert [module.training for module in model] == [False, True, True, True, True]


def test_a_freezer_tells_what_is_remembered_and_takes_it_back() -> None:
    model, told = freeze(Blocks(), "embed"), list[Notice]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = Freezer(model, optimizer, {"freeze": {"cache_prefix_bytes": 1000}}, policy=Scripted({}), emit=told.append)
    freezer.arm(2)
    freezer.remember_nothing("it rains")
    freezer.arm(2)
    assert freezer.memory is None
    assert type(model.embed) is nn.Linear
    assert told == [
        Notice(0, "prefix", "outputs of embed are remembered; blocks.0.0 is active"),
        Notice(0, "prefix", "nothing is remembered: it rains"),
    ]
