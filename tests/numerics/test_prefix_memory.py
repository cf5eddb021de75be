"""Training with a memory of the frozen prefix equals training without, to the bit, in plain loops; and what it costs is counted."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from fat_ray.engine.flops import FlopMeter, Flops
from fat_ray.freeze.freezer import Freezer
from tests.support.scripted import Scripted

NUM_EXAMPLES, BATCH, EPOCHS = 16, 4, 5


class Convolutions(nn.Module):
    """Features of two resolutions, in channels last, of which the head reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for _ in range(3)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.norm(self.stem(x.contiguous(memory_format=torch.channels_last))))
        first = x
        for block in self.blocks:
            x = x + block(x)
        return self.head(torch.cat([first.mean((2, 3)), x.mean((2, 3))], 1))


class Tokens(nn.Module):
    """A transformer with a class token, whose first layers freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 4, stride=4), nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


def trained(make: Callable[[], nn.Module], remembered: int) -> tuple[dict[str, Tensor], list[float], Freezer]:
    """Freezes the front, later more of it, thaws in the end; and the operations of each forward."""
    torch.manual_seed(0)
    model = make()
    examples = torch.randn(NUM_EXAMPLES, 3, 16, 16)
    optimizer = optim.AdamW(model.parameters(), lr=0.02)
    policy = Scripted({})
    spec = {"freeze": {"frozen_statistics": "hold", "cache_prefix_bytes": remembered}, "fisher": {"groups": {"min_block": 1}}}
    freezer = Freezer(model, optimizer, spec, policy=policy)
    front = np.array([group.elements for group in freezer.groups]).cumsum() / sum(group.elements for group in freezer.groups)
    policy.events = {1: front > 0.4, 9: front > 0.7, 17: front >= 0}
    meter = FlopMeter(model, freezer.memory)
    computed = []
    for _ in range(EPOCHS):
        for chosen in torch.randperm(NUM_EXAMPLES).split(BATCH):
            x = examples[chosen]
            optimizer.zero_grad()
            freezer.arm(len(x))
            with meter.watch((x,)):
                functional.cross_entropy(model(x), chosen % 4).backward()
            if freezer.after_backward():
                meter.forget()
            computed.append(meter.step.forward)
            optimizer.step()
    return copy.deepcopy(model.state_dict()), computed, freezer


@pytest.mark.parametrize("make", [Convolutions, Tokens])
def test_a_loop_that_remembers_equals_one_that_computes(make: Callable[[], nn.Module]) -> None:
    (plain, all_of_it, _), (remembering, computed, freezer) = trained(make, 0), trained(make, 10**7)
    assert all(torch.equal(remembering[key], value) for key, value in plain.items())
    assert len(set(all_of_it)) == 1
    saved = [part < 1 for part in np.array(computed) / all_of_it]
    assert saved.count(True) >= 4
    assert not any(saved[:2])
    assert not any(saved[18:])
    assert freezer.memory is not None
    assert freezer.memory.used == 0


def small() -> tuple[nn.Module, Freezer]:
    model = nn.Sequential(nn.Conv1d(6, 8, 1), nn.Tanh(), nn.Conv1d(8, 3, 1))
    model[0].requires_grad_(requires_grad=False)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return model, Freezer(model, optimizer, {"freeze": {"cache_prefix_bytes": 10**6}}, policy=Scripted({}))


def test_a_compiled_network_computes() -> None:
    """What its kernels return may be other bits than those of the modules, so neither takes the other's place."""
    model, freezer = small()
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), torch.randn(BATCH, 6, 5)
    for _ in range(3):
        freezer.arm(len(x))
        compiled(x).sum().backward()
    assert freezer.memory is not None
    assert freezer.memory.used == 0
    torch.func.vmap(model)(x)
    assert freezer.memory.used == 0
    model(x)
    assert freezer.memory.used == BATCH * 8 * 5 * 4


def test_what_is_not_computed_is_not_counted_and_trying_it_out_is() -> None:
    model, freezer = small()
    meter, x = FlopMeter(model, freezer.memory), torch.randn(BATCH, 6, 5)
    first, last = 2 * BATCH * 5 * 6 * 8, 2 * BATCH * 5 * 8 * 3
    forwards = []
    for _ in range(4):
        freezer.arm(len(x))
        with meter.watch((x,)):
            model(x).sum().backward()
        forwards.append(meter.step.forward)
        assert (meter.step.input_gradient, meter.step.weight_gradient) == (0, last)
    assert forwards == [first + last, first + last + first, last, last]  # watched, learnt and tried out, answered
    assert meter.step == Flops(last, 0, last)
