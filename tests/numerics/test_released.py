"""The preset `released` against a second implementation of its text, on networks and settings other than the recorded ones."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.events import Drift, Freeze
from fat_ray.fisher.groups import Group
from fat_ray.fisher.state import group_values
from fat_ray.freeze.freezer import Freezer
from tests.support.factors import watched_states
from tests.support.released_reference import Floats, Reference, Settings

STEPS, BATCH, CLASSES = 26, 6, 5


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class Network(nn.Module):
    """Of the recorded kind, in other sizes, with grouped convolutions and layers that have no factors."""

    def __init__(self, width: int = 12, depth: int = 1, hidden: int = 18, groups: int = 1, *, conv_bias: bool = True) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.zeros(1, 9, width))
        self.patch = nn.Conv2d(3, width, (4, 5), stride=(4, 5), bias=conv_bias)
        self.bn = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=conv_bias)
        self.group_norm = nn.GroupNorm(2, width)
        self.blocks = nn.ModuleList(Block(width, 2, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.group_norm(self.mix(self.bn(self.patch(images)).relu()))
        x = x.flatten(2).transpose(1, 2) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


class Convolutional(nn.Module):
    """Strides, pads and sizes that divide nothing; a LayerNorm over images, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 2), stride=(2, 3), padding=(1, 0))
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=2, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.stem(images)), inplace=True)
        x = functional.relu6(self.bn2(self.depthwise(x)))
        return self.head(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """A network and settings."""

    make: Callable[[], nn.Module]
    settings: Settings


CASES = {
    "five blocks, λ = -1": Case(lambda: Network(depth=5), Settings(threshold=-1.0)),
    "λ = 0.25": Case(Network, Settings(threshold=0.25, n=9)),
    "grouped convolution": Case(lambda: Network(width=16, groups=4), Settings(k=5)),
    "mean score, no bias": Case(lambda: Network(groups=2, conv_bias=False), Settings(score="mean", m=1, n=5)),
    "columns": Case(lambda: Network(width=14, hidden=37), Settings(columns=True, k=3)),
    "raw distance": Case(lambda: Network(depth=2), Settings(distance="raw", threshold=-0.3)),
    "raw distance of columns, mean": Case(lambda: Network(groups=3), Settings(distance="raw", columns=True, score="mean", threshold=0.0)),
    "strides and depthwise": Case(Convolutional, Settings(m=3, n=6, weight_decay=0.1)),
}


def spec_of(settings: Settings) -> dict[str, Any]:
    return {
        "preset": "released",
        "fisher": {"every": settings.m, "groups": {"along": "columns" if settings.columns else "rows", "blocks": settings.k}},
        "drift": {"score": settings.score, "distance": settings.distance},
        "freeze": {"every": settings.n, "threshold": settings.threshold},
    }


@dataclass
class Run:
    """What the package did.

    Attributes:
        fisher: By step, the values of each group as it knows them.
    """

    freezer: Freezer
    events: list[Any]
    losses: list[float]
    fisher: dict[int, dict[int, Floats]]

    @property
    def drift(self) -> list[Drift]:
        return [event for event in self.events if isinstance(event, Drift)]

    @property
    def freezes(self) -> list[Freeze]:
        return [event for event in self.events if isinstance(event, Freeze)]


def batches() -> list[tuple[Tensor, Tensor]]:
    """Learnable: the label is in the picture."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, CLASSES, (STEPS, BATCH), generator=generator)
    images = torch.randn(STEPS, BATCH, 3, 13, 17, generator=generator) + labels[..., None, None, None] * 0.3
    return list(zip(images, labels, strict=True))


def trained(model: nn.Module, settings: Settings) -> Run:
    """By the package, in a loop of one's own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    events: list[Any] = []
    freezer = Freezer(model, optimizer, spec_of(settings), emit=events.append)
    run, states = Run(freezer, events, [], {}), watched_states(freezer.meter)
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        freezer.arm(len(x))
        loss = functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        active = freezer.entries.active.copy()
        freezer.after_backward()
        if step % settings.m == 0:
            (state,) = states[-1]
            known = np.flatnonzero(active & freezer.meter.factored).tolist()
            run.fisher[step] = {index: group_values(freezer.groups[index], state, factored=True) for index in known}
        optimizer.step()
        run.losses.append(float(loss.detach()))
    return run


def names_of(groups: list[Group]) -> list[str]:
    """What the reference calls them."""
    return [f"{member.parameter}/{member.dim}/{member.start}:{member.stop}" for (member,) in (group.members for group in groups)]


def start(name: str) -> tuple[nn.Module, Settings]:
    torch.manual_seed(0)
    return CASES[name].make().train(), CASES[name].settings


@functools.cache
def run_of(name: str) -> Run:
    torch.set_num_threads(1)
    return trained(*start(name))


def reference_of(name: str, fisher: Callable[[Reference, int], dict[str, Floats]] | None = None) -> Reference:
    model, settings = start(name)
    reference = Reference(model, settings, fisher)
    for step, (x, y) in enumerate(batches()):
        reference.step(step, functional.cross_entropy(model(x), y))
    return reference


@pytest.mark.parametrize("name", CASES)
def test_a_whole_training_follows_the_text(name: str) -> None:
    """Each trains by itself: the same groups, Fisher values, distances, scores and first kept set, and the same loss at the end."""
    run, reference = run_of(name), reference_of(name)
    names, trace, before_freeze = names_of(run.freezer.groups), reference.trace, reference.settings.n + 1
    assert set(names) == set(reference.groups)
    assert {names[index] for index in run.freezes[0].frozen} == trace.dead
    for step in sorted(trace.fisher)[:3]:
        for index, values in run.fisher[step].items():
            parameter, where = reference.groups[names[index]]
            # Adam moves a bias whose gradient is nothing but rounding, as before a BatchNorm: from there on the two are not one
            np.testing.assert_allclose(values, trace.fisher[step][parameter][where].ravel(), rtol=1e-3 if step else 1e-5)
    frozen = {names[index] for freeze in run.freezes[:2] for index in freeze.frozen}
    assert set(names) - frozen == trace.events[0].kept
    np.testing.assert_allclose(run.losses[:before_freeze], trace.losses[:before_freeze], rtol=1e-4)
    assert run.losses[-1] == pytest.approx(trace.losses[-1], rel=0.02)
    for found, expected in zip(run.drift[1].smoothed, (trace.smoothed[1].get(name) for name in names), strict=True):
        assert found is expected is None or found == pytest.approx(expected, abs=0.01)  # a value may move over a bin's edge


@pytest.mark.parametrize("name", CASES)
def test_distances_scores_and_decisions_follow_exactly_from_the_fisher_values(name: str) -> None:
    """The text is given the package's own Fisher values; all that it makes of them has to be the same."""
    run = run_of(name)
    names = names_of(run.freezer.groups)

    def fisher(reference: Reference, step: int) -> dict[str, Floats]:
        whole: dict[str, Floats] = {}
        for index, values in run.fisher[step].items():
            parameter, where = reference.groups[names[index]]
            kept = whole.setdefault(parameter, np.full(reference.model.get_parameter(parameter).shape, np.nan, np.float32))
            kept[where] = values.reshape(kept[where].shape)
        return whole

    trace = reference_of(name, fisher).trace
    assert len(trace.events) == len(run.freezes) - 1 > 1
    for update, expected in zip(run.drift[1:], trace.distance[1:], strict=True):
        assert by_name(names, update.distance) == pytest.approx(expected, abs=1e-12)
    for update, smoothed in zip(run.drift, trace.smoothed, strict=True):
        active = [value if on else None for value, on in zip(update.smoothed, update.active, strict=True)]
        assert by_name(names, active) == pytest.approx(smoothed, abs=1e-12)
    kept = set(names) - trace.dead
    for freeze, event in zip(run.freezes[1:], trace.events, strict=True):
        kept -= {names[index] for index in freeze.frozen}
        assert (freeze.step, kept) == (event.step, event.kept)


def by_name(names: list[str], values: Sequence[float | None]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}
