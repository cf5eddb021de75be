"""Training with frozen entries equals plain training with their gradients zeroed and their values put back, in every form they are held."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from fat_ray.fisher.collector import Share
from fat_ray.fisher.groups import build_groups
from fat_ray.freeze import forms
from fat_ray.freeze.carried import gather_state, load_gathered
from fat_ray.freeze.entries import ActiveEntries
from fat_ray.freeze.freezer import Freezer
from fat_ray.spec.run import GroupSpec
from tests.support.masked_training import MaskedTraining
from tests.support.optimizers import OPTIMIZERS
from tests.support.scripted import Scripted

Model = Callable[[], nn.Module]


@pytest.fixture(autouse=True)
def _slice_whatever_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """These layers are far too small for it to pay."""
    monkeypatch.setattr(forms, "worth_slicing", lambda *_: True)


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
    reference = "sgd" if optimizer == "sgd-fused" else optimizer  # torch's own cannot take up parameters later
    slow = MaskedTraining(plain, OPTIMIZERS[reference](plain.parameters()), groups)
    fast = OPTIMIZERS[optimizer](frozen.parameters())
    entries = ActiveEntries(frozen, fast, groups)
    events = schedule(len(groups))
    keys = list(plain.state_dict())
    for step, x in enumerate(batches(15)):
        for each, optimizer_of in ((plain, slow.optimizer), (frozen, fast)):
            optimizer_of.zero_grad()
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


def spec_of(model: str) -> dict[str, object]:
    return {"fisher": {"groups": MODELS[model][1].model_dump()}, "drift": {"noise": "none"}}


def adamw(model: nn.Module) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    optimizer = optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.2)
    return optimizer, optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=15)


@pytest.mark.parametrize("made_at", [0, 3, 9])
@pytest.mark.parametrize("average", [{}, {"avg_fn": get_ema_avg_fn(0.8)}, {"multi_avg_fn": get_ema_multi_avg_fn(0.8)}])
def test_a_whole_loop_equals_masked_training(made_at: int, average: dict[str, object]) -> None:
    """Accumulated micro-batches, loss scaling, clipping, a scheduler of rates and betas, and averaged weights."""
    plain, frozen = build("convolutions"), build("convolutions")
    (slow_optimizer, slow_rate), (fast_optimizer, fast_rate) = adamw(plain), adamw(frozen)
    groups = build_groups(plain, MODELS["convolutions"][1])
    slow, events = MaskedTraining(plain, slow_optimizer, groups), schedule(len(groups))
    freezer = Freezer(frozen, fast_optimizer, spec_of("convolutions"), policy=Scripted(events))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    averages: list[AveragedModel] = []
    for step, x in enumerate(batches(15)):
        slow_optimizer.zero_grad()
        fast_optimizer.zero_grad()
        for first in (0, 3):
            part, target = x[first : first + 3], torch.arange(3)
            (functional.cross_entropy(plain(part), target) / 2).backward()
            freezer.arm(Share(6, first=first, size=3, loss_scale=scaler.get_scale()))
            scaler.scale(functional.cross_entropy(frozen(part), target) / 2).backward()
        if step in events:
            slow.set_active(events[step])
        freezer.after_backward()
        scaler.unscale_(fast_optimizer)
        for parameter, mask in zip(plain.parameters(), slow.masks.values(), strict=True):
            if parameter.grad is not None:
                parameter.grad[~mask] = 0
        norms = [nn.utils.clip_grad_norm_(model.parameters(), 0.1) for model in (plain, frozen)]
        torch.testing.assert_close(*norms, rtol=1e-8, atol=0)
        slow.step()
        scaler.step(fast_optimizer)
        scaler.update()
        slow_rate.step()
        fast_rate.step()
        if step == made_at:
            averages = [AveragedModel(plain, **average), AveragedModel(frozen, **average)]
        if step >= made_at:
            for averaged, model in zip(averages, (plain, frozen), strict=True):
                averaged.update_parameters(model)
                states = averages[0].module.state_dict(), averages[1].module.state_dict()
    assert slow_rate.get_last_lr() == fast_rate.get_last_lr()
    torch.testing.assert_close(frozen.state_dict(), plain.state_dict(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(states[1], states[0], rtol=1e-8, atol=1e-10)


def test_a_compiled_network_freezes_as_itself() -> None:
    """Also at events for which nothing was collected, so that only the count of positions makes a step run as written."""
    plain, frozen = build("dense"), build("dense")
    compiled = torch.compile(frozen, backend="eager")
    freezers = []
    for model, given in ((plain, plain), (frozen, compiled)):
        optimizer = optim.AdamW(model.parameters(), lr=0.02)
        freezer = Freezer(given, optimizer, spec_of("dense"), policy=Scripted(schedule(len(build_groups(model, MODELS["dense"][1])))))
        for x in batches(10):
            optimizer.zero_grad()
            freezer.arm(len(x))
            backward(given, x)
            freezer.after_backward()
            optimizer.step()
        freezers.append(freezer)
    torch.testing.assert_close(frozen.state_dict(), plain.state_dict(), rtol=1e-8, atol=1e-10)
    counts = [list(freezer.entries.positions.values()) for freezer in freezers]
    assert counts == [[6, 6, 6]] * 2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd-nesterov", "adadelta"])
def test_a_loop_of_ones_own_goes_on_from_its_checkpoint_to_the_bit(optimizer: str) -> None:
    """As docs/freezer.md says: the Freezer's state before the optimizer's. Right before an event, right after one, and between."""
    spec = {**spec_of("dense"), "freeze": {"every": 4, "warmup_steps": 4, "threshold": 0.0}}

    def begin() -> tuple[nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, Freezer]:
        model = build("dense")
        made = OPTIMIZERS[optimizer](model.parameters())
        schedule = optim.lr_scheduler.SequentialLR(
            made, [optim.lr_scheduler.LinearLR(made), optim.lr_scheduler.ExponentialLR(made, 0.9)], [6]
        )
        return model, made, schedule, Freezer(model, made, spec)

    data, saved = list(batches(15)), {}
    model, made, schedule, freezer = begin()
    for step, x in enumerate(data):
        saved[step] = copy.deepcopy((model.state_dict(), gather_state(freezer), made.state_dict(), schedule.state_dict()))
        train_step(model, made, schedule, freezer, x)
    assert freezer.entries.active_elements < 0.7 * freezer.entries.elements.sum()
    for step in (4, 5, 10):
        again, other, rates, resumed = begin()
        weights, state, moments, rate = saved[step]
        again.load_state_dict(weights)
        load_gathered(resumed, state, "checkpoint")
        other.load_state_dict(moments)
        rates.load_state_dict(rate)
        for x in data[step:]:
            train_step(again, other, rates, resumed, x)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
        assert rates.get_last_lr() == schedule.get_last_lr()
        assert resumed.entries.active.tolist() == freezer.entries.active.tolist()


def train_step(model: nn.Module, optimizer: optim.Optimizer, schedule: optim.lr_scheduler.LRScheduler, freezer: Freezer, x: Tensor) -> None:
    optimizer.zero_grad()
    freezer.arm(len(x))
    backward(model, x)
    freezer.after_backward()
    optimizer.step()
    schedule.step()


def test_all_three_forms_occur() -> None:
    """Lest the comparisons above compare less than they say."""
    seen = set()
    for name, (_, spec) in MODELS.items():
        model = build(name)
        groups = build_groups(model, spec)
        entries = ActiveEntries(model, optim.SGD(model.parameters(), lr=0.1), groups)
        for active in schedule(len(groups)).values():
            entries.set_active(active)
            seen |= set(entries._forms.values())
    assert seen == {"free", "sliced", "masked", "frozen"}


def test_a_frozen_prefix_runs_without_autograd() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    events = {0: np.array([False] * 8 + [False, True, False, False] + [True] * 4)}
    freezer = Freezer(model, optim.SGD(model.parameters(), lr=0.1), spec_of("dense"), policy=Scripted(events))
    assert freezer.frontier is None
    x = torch.randn(5, 6)
    model(x).sum().backward()
    freezer.after_backward()
    assert freezer.frontier == "4"
    recorded: list[bool] = []
    for layer in model[::2]:
        layer.register_forward_hook(lambda _, __, output: recorded.append(output.requires_grad))
    output = model(x)
    assert recorded == [False, False, True, True]
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    weights, inputs = 5 * 8 * 2 + 5 * 8 * 4, 5 * 4 * 8  # two of eight rows of "4", all of "6"; "6" passes a gradient on, "4" none
    assert counter.get_total_flops() == 2 * (weights + inputs)


def test_a_frozen_batch_norm_keeps_watching_unless_it_is_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    active = np.array([False, False, False, False, False, True, True])
    spec = {"fisher": {"groups": {"min_block": 1}}}
    freezer = Freezer(model, optim.SGD(model.parameters(), lr=0.1), spec, policy=Scripted({0: active}))
    norm = model[1]
    for mode, moves in ((True, True), (True, True), (False, False)):
        norm.train(mode)
        before = norm.running_mean.clone()
        freezer.arm(5)
        model(torch.randn(5, 4)).sum().backward()
        freezer.after_backward()
        assert (not torch.equal(norm.running_mean, before)) is moves
    assert not norm.weight.requires_grad
