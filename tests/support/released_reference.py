"""A second implementation of `docs/method.md`, section 4, that shares nothing with the package: one trainer, read from top to bottom.

Everything is formed and looped over as the text says it: patches by `unfold`, values of a group as an array, `numpy.percentile` and
`numpy.histogram`, masks, and AdamW by hand. Slow, and meant to be.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Floats = NDArray[np.float32]
Place = tuple[str, tuple[slice, ...]]
"""A parameter and the entries of a group in it."""


@dataclass(frozen=True)
class Settings:
    """What the text leaves open, in its own letters."""

    m: int = 2
    n: int = 6
    k: int = 4
    threshold: float = -0.5
    columns: bool = False
    score: str = "total_variation"
    distance: str = "log"
    lr: float = 2e-3
    weight_decay: float = 0.01


@dataclass
class Memory:
    """Of one group: E, d̂, total variation, sum of d̂, and the number of updates."""

    average: Floats
    smoothed: float = 0.0
    variation: float = 0.0
    total: float = 0.0
    count: int = 1


@dataclass
class Event:
    """What a freeze decided."""

    step: int
    scores: dict[str, float]
    kept: set[str]


@dataclass
class Trace:
    """What happened."""

    dead: set[str] = field(default_factory=set)
    fisher: dict[int, dict[str, Floats]] = field(default_factory=dict)
    distance: list[dict[str, float]] = field(default_factory=list)
    smoothed: list[dict[str, float]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def cut(model: nn.Module, settings: Settings) -> dict[str, Place]:
    """Groups by a name of their own."""
    groups = {}
    for name, parameter in model.named_parameters():
        dim = 1 if settings.columns and parameter.ndim > 1 else 0
        if settings.columns and parameter.ndim == 1:
            blocks = [(0, len(parameter))]
        else:
            in_three = name.rpartition(".")[0].endswith(".attn.qkv") and not settings.columns
            size = parameter.shape[dim] // (3 if in_three else 1)
            edges = np.floor(np.linspace(0, size, settings.k + 1)).astype(int)
            starts = range(0, parameter.shape[dim], size)
            blocks = [(start + int(a), start + int(b)) for start in starts for a, b in itertools.pairwise(edges)]
        for start, stop in blocks:
            if stop > start:
                groups[f"{name}/{dim}/{start}:{stop}"] = name, (slice(None),) * dim + (slice(start, stop),)
    return groups


def factors(module: nn.Module, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ĥ of the weight, Ĥ of the bias, and Ŝ."""
    batch = len(x)
    if isinstance(module, nn.Linear):
        h, g = x.reshape(-1, x.shape[-1]), s.reshape(-1, s.shape[-1])
        return (h**2).sum(0) / len(h), torch.ones(1), (g**2).sum(0) / len(g)
    if isinstance(module, nn.Conv2d):
        assert isinstance(module.padding, tuple)
        groups = x.reshape(batch * module.groups, -1, *x.shape[2:])
        patches = functional.unfold(groups, module.kernel_size, padding=module.padding, stride=module.stride)  # type: ignore[arg-type]
        size, positions = patches.shape[1:]
        divisor = batch * positions * size if module.bias is not None else batch
        bias = torch.tensor([module.groups / size])
        return (patches**2).sum((0, 2)) / divisor, bias, (s**2).sum((0, 2, 3)) / (batch * s.shape[2] * s.shape[3])
    if isinstance(module, nn.BatchNorm2d):
        u = x.sum((0, 2, 3)) / (x.shape[2] * x.shape[3]) ** 2
        return (u**2).sum()[None] / batch**2, torch.tensor([len(u) / batch**2]), s.sum((0, 2, 3)) ** 2 / batch
    others = [dim for dim in range(x.ndim) if dim != 1]
    u = x.sum(others) / math.prod(x.shape[dim] for dim in others[1:]) ** 2
    return (u**2).sum()[None] / batch**2, torch.tensor([len(u) / batch**2]), s.sum(tuple(range(s.ndim - 1))) ** 2 / batch


def fisher_of(module: nn.Module, x: Tensor, s: Tensor) -> dict[str, Floats]:
    """Diagonal Fisher of weight and bias, in the shape of each."""
    weight, bias, out = (0.2 + 0.8 * factor for factor in factors(module, x, s))
    assert isinstance(module.weight, Tensor)
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        found = {"weight": torch.outer(out, weight).reshape(module.weight.shape), "bias": out * bias}
    else:
        found = {"weight": out * weight, "bias": out * bias}
    return {role: value.numpy() for role, value in found.items()}


def histogram_pair(reference: Floats, current: Floats, distance: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of both states in 64 bins."""
    states = [np.abs(state).astype(np.float64).ravel() for state in (reference, current)]
    if distance == "log":
        states = [np.log10(state + 1e-12) for state in states]
        low, high = np.percentile(np.concatenate(states), [1, 99])
    else:
        low, high = min(s.min() for s in states), max(s.max() for s in states)
    edges = np.linspace(low, high if high > low else low + 1e-3, 65)
    return np.histogram(states[0], edges)[0], np.histogram(states[1], edges)[0]


def js(reference: Floats, current: Floats, distance: str) -> float:
    """Jensen-Shannon distance of the two histograms."""
    masses = []
    for counts in histogram_pair(reference, current, distance):
        p = (counts + 1e-12) / (counts + 1e-12).sum()
        p = np.maximum(p, 1e-12)
        masses.append(p / p.sum())
    p, q = masses
    middle = (p + q) / 2
    return math.sqrt(max(0.0, 0.5 * float((p * np.log(p / middle)).sum()) + 0.5 * float((q * np.log(q / middle)).sum())))


class Reference:
    """Trains by the text.

    Args:
        model: In training mode; it is trained.
        settings: See `Settings`.
        fisher: Who gives the diagonal Fisher at a step instead of `fisher_of`, by parameter; for tests of what follows from it alone.
    """

    def __init__(self, model: nn.Module, settings: Settings, fisher: "Callable[[Reference, int], dict[str, Floats]] | None" = None) -> None:
        self.model, self.settings, self._given = model, settings, fisher
        self.groups = cut(model, settings)
        self.active = set(self.groups)
        self.memory: dict[str, Memory] = {}
        self.trace = Trace()
        self._moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
        self._steps = dict.fromkeys(self._moments, 0)
        self._seen: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
        self._watch()

    def _watch(self) -> None:
        def watch(path: str, module: nn.Module) -> None:
            def forward(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
                x = inputs[0].detach().clone()
                output.register_hook(lambda s: self._seen.update({path: (module, x, s.clone())}))  # type: ignore[no-untyped-call]

            module.register_forward_hook(forward)

        for path, module in self.model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)):
                watch(path, module)

    def step(self, t: int, loss: Tensor) -> None:
        """One training step, from its loss."""
        for parameter in self.model.parameters():
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        self.trace.losses.append(float(loss.detach()))
        settings = self.settings
        if t % settings.m == 0:
            fisher = self._given(self, t) if self._given else self._fisher()
            if t == 0:
                self.trace.dead = {group for group, (name, _) in self.groups.items() if name not in fisher}
                self.active -= self.trace.dead
            self._update(t, fisher)
        if t > 0 and t % settings.n == 0:
            self._freeze(t)
        self._adamw()

    def _fisher(self) -> dict[str, Floats]:
        found = {}
        for path, seen in self._seen.items():
            for role, value in fisher_of(*seen).items():
                found[f"{path}.{role}"] = value
        return found

    def _update(self, t: int, fisher: dict[str, Floats]) -> None:
        self.trace.fisher[t] = fisher
        distances = {}
        for group in self.active:
            name, index = self.groups[group]
            value = fisher[name][index]
            if group not in self.memory:
                self.memory[group] = Memory(value.copy())
                continue
            memory = self.memory[group]
            distances[group] = d = js(memory.average, value, self.settings.distance)
            memory.average = np.float32(0.9) * memory.average + np.float32(1.0 - 0.9) * value
            smoothed = 0.9 * memory.smoothed + (1.0 - 0.9) * d
            memory.variation += abs(smoothed - memory.smoothed)
            memory.smoothed = smoothed
            memory.total += smoothed
            memory.count += 1
        self.trace.distance.append(distances)
        self.trace.smoothed.append({group: self.memory[group].smoothed for group in self.active})

    def _freeze(self, t: int) -> None:
        means = self.settings.score == "mean"
        scores = {g: (self.memory[g].total / self.memory[g].count if means else self.memory[g].variation) for g in self.active}
        values = np.array(list(scores.values()))
        tau = values.mean() + self.settings.threshold * values.std()
        kept = {group for group, score in scores.items() if not score < tau} or {max(scores, key=scores.__getitem__)}
        for group in self.active - kept:
            name, index = self.groups[group]
            for moment in self._moments[name]:
                moment[index] = 0
        self.active = kept
        self.trace.events.append(Event(t, scores, set(kept)))

    @torch.no_grad()
    def _adamw(self) -> None:
        """Decay of active entries, then Adam, for active entries only."""
        lr, decay = self.settings.lr, self.settings.weight_decay
        parameters = dict(self.model.named_parameters())
        by_name: dict[str, list[tuple[slice, ...]]] = {}
        for group in self.active:
            name, index = self.groups[group]
            by_name.setdefault(name, []).append(index)
        for name, indices in by_name.items():
            parameter, (first, second) = parameters[name], self._moments[name]
            self._steps[name] += 1
            t = self._steps[name]
            assert parameter.grad is not None
            for index in indices:
                g = parameter.grad[index]
                first[index] = 0.9 * first[index] + 0.1 * g
                second[index] = 0.999 * second[index] + 0.001 * g * g
                moved = (first[index] / (1 - 0.9**t)) / ((second[index] / (1 - 0.999**t)).sqrt() + 1e-8)
                parameter[index] = parameter[index] * (1 - lr * decay) - lr * moved
