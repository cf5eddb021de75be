"""Training with frozen entries equals plain training with their gradients zeroed and their values put back, in every form they are held."""

import copy
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.fisher.groups import build_groups
from fat_ray.freeze.entries import ActiveEntries
from fat_ray.spec.run import GroupSpec
from tests.support.masked_training import MaskedTraining
from tests.support.optimizers import OPTIMIZERS

Model = Callable[[], nn.Module]


class Tied(nn.Module):
    """Embedding and output share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.mix = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.out = nn.Linear(8, 12)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x.flatten(1)[:, :6].abs() * 7).long() % 12
        return self.out(torch.tanh(self.mix(self.embed(tokens)) * self.scale)).mean(1)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embed((x.flatten(1)[:, :6].abs() * 7).long() % 12))
        return self.out((h + self.attention(h, h, h, need_weights=False)[0]).mean(1))


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def convolutions() -> nn.Module:
    first = nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.Tanh(), nn.Conv2d(8, 8, 2, bias=False, padding="same", padding_mode="circular"))
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.PReLU(8), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(64, 4))


MODELS: dict[str, tuple[Model, GroupSpec]] = {
    "dense": (dense, GroupSpec(blocks=4, min_block=1)),
    "dense in columns": (dense, GroupSpec(blocks=4, min_block=1, along="columns")),
    "convolutions": (convolutions, GroupSpec(blocks=4, min_block=1)),
    "convolutions, bias apart": (convolutions, GroupSpec(blocks=3, min_block=1, bias="apart")),
    "tokens": (Tokens, GroupSpec(blocks=4, min_block=1)),
    "tied": (Tied, GroupSpec(blocks=4, min_block=1)),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().double()


def batches(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    yield from (torch.randn(6, 2, 5, 5, dtype=torch.float64, generator=generator) for _ in range(count))


def backward(model: nn.Module, x: Tensor) -> None:
    output = model(x)
    functional.cross_entropy(output, torch.arange(6) % output.shape[1]).backward()


def schedule(num_groups: int) -> dict[int, np.ndarray]:
    """Two events that freeze, one that thaws some, one that does both, one that freezes nearly all, and one that thaws everything."""
    rng = np.random.default_rng(3)
    active = rng.random(num_groups) < 0.7
    fewer = active & (rng.random(num_groups) < 0.7)
    more = fewer | (rng.random(num_groups) < 0.4)
    other = rng.random(num_groups) < 0.5
    one = np.arange(num_groups) == num_groups - 1
    return {2: active, 4: fewer, 6: more, 8: other, 10: one, 12: np.ones(num_groups, bool)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_masked_training(model: str, optimizer: str) -> None:
    plain, frozen = build(model), build(model)
    groups = build_groups(plain, MODELS[model][1])
    slow = MaskedTraining(plain, OPTIMIZERS[optimizer](plain.parameters()), groups)
    fast = OPTIMIZERS[optimizer](frozen.parameters())
    entries = ActiveEntries(frozen, fast, groups)
    events = schedule(len(groups))
    keys = list(plain.state_dict())
    for step, x in enumerate(batches(15)):
        for each, optim in ((plain, slow.optimizer), (frozen, fast)):
            optim.zero_grad()
            backward(each, x)
        if step in events:
            slow.set_active(events[step])
            entries.set_active(events[step])
        entries.mask_gradients()
        before = copy.deepcopy(frozen.state_dict())
        slow.step()
        fast.step()
        assert list(frozen.state_dict()) == keys
        for key, value in frozen.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-8, atol=1e-10)
            if key in slow.masks:
                still = ~slow.masks[key]
                assert torch.equal(value[still], before[key][still])
        held = sum(parameter.numel() for group in fast.param_groups for parameter in group["params"])
        assert held >= entries.active_elements
    assert [p for group in fast.param_groups for p in group["params"]] == list(frozen.parameters())
    assert all(type(a) is type(b) for a, b in zip(frozen.modules(), plain.modules(), strict=True))
