"""How close the Kronecker diagonal is to the true diagonal empirical Fisher, for every kind of layer.

True: the mean over examples of the squared gradient of each example's own loss, one backward per example. Two correlations over all
entries of a layer's parameters, of log10 values: for the layer by itself on random inputs and targets, and inside a network after some
training steps on a task that can be learnt. `python -m bench.coverage [--json]`.

Layers whose forward is not a product of inputs and outputs (attention, embeddings used as heads) have no factors and are not listed:
theirs is the squared mean gradient.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.factors import ExactFormulas
from fat_ray.fisher.flat import NOTHING, Flat
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.reduce import reduce_sums
from fat_ray.fisher.state import State, group_values
from fat_ray.spec.run import GroupSpec

Floats = NDArray[np.float64]
CPU = torch.device("cpu")
WHOLE = GroupSpec(blocks=1, min_block=1, bias="apart")
EXAMPLES, TRAIN_STEPS, LR = 64, 60, 3e-3
EPSILON = 1e-12


@dataclass(frozen=True)
class Kind:
    """A layer, its input without the batch dimension (integers below `vocabulary` if that is given), and its position count of outputs."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0


KINDS = {
    "Linear": Kind(lambda: nn.Linear(12, 10), (12,)),
    "Linear on tokens": Kind(lambda: nn.Linear(12, 10), (6, 12)),
    "Conv1d": Kind(lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1), (6, 12)),
    "Conv2d": Kind(lambda: nn.Conv2d(4, 8, 3, padding=1), (4, 8, 8)),
    "Conv2d, pointwise": Kind(lambda: nn.Conv2d(8, 8, 1), (8, 6, 6)),
    "Conv2d, patches": Kind(lambda: nn.Conv2d(3, 8, 4, stride=4), (3, 16, 16)),
    "Conv2d, same, dilated": Kind(lambda: nn.Conv2d(4, 8, 3, padding="same", dilation=2), (4, 8, 8)),
    "Conv2d, reflect": Kind(lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (4, 8, 8)),
    "Conv2d, two groups": Kind(lambda: nn.Conv2d(4, 8, 3, groups=2), (4, 8, 8)),
    "Conv2d, depthwise": Kind(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 8, 8)),
    "Conv3d": Kind(lambda: nn.Conv3d(2, 4, 2, stride=2), (2, 6, 6, 6)),
    "ConvTranspose1d": Kind(lambda: nn.ConvTranspose1d(6, 8, 3, stride=2), (6, 6)),
    "ConvTranspose2d": Kind(lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5)),
    "ConvTranspose3d": Kind(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 3, 3)),
    "LayerNorm": Kind(lambda: nn.LayerNorm(16), (6, 16)),
    "RMSNorm": Kind(lambda: nn.RMSNorm(16), (6, 16)),
    "GroupNorm": Kind(lambda: nn.GroupNorm(4, 16), (16, 5, 5)),
    "BatchNorm1d": Kind(lambda: nn.BatchNorm1d(16), (16,)),
    "BatchNorm2d": Kind(lambda: nn.BatchNorm2d(16), (16, 5, 5)),
    "Embedding": Kind(lambda: nn.Embedding(16, 8), (6,), vocabulary=16),
}


@dataclass(frozen=True)
class Row:
    """Correlations of log10 of both estimates over the entries of a layer.

    Attributes:
        kind: Layer.
        entries: Number of parameter entries; in brackets of the table.
        random_weight: Weight, layer alone, random data.
        random_bias: Bias, the same; None without one.
        trained_weight: Weight, within a network after training.
        trained_bias: Bias, the same.
        ratio: Median of Kronecker over true for the weight after training: what the independence of positions gets wrong.
    """

    kind: str
    entries: int
    random_weight: float
    random_bias: float | None
    trained_weight: float
    trained_bias: float | None
    ratio: float


def inputs(kind: Kind, generator: torch.Generator) -> Tensor:
    """Channels and tokens of unequal strength, as in a network; an embedding reads some rows more often."""
    shape = (EXAMPLES, *kind.shape)
    if kind.vocabulary:
        return (torch.rand(shape, generator=generator) ** 2 * kind.vocabulary).long()
    axis = -1 if len(kind.shape) == 1 or isinstance(kind.make(), (nn.Linear, nn.LayerNorm, nn.RMSNorm)) else 1
    strength = torch.exp(torch.randn(shape[axis], generator=generator))
    view = [1] * len(shape)
    view[axis] = -1
    return torch.randn(shape, generator=generator) * strength.view(view)


def per_example(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Squared error of each example."""
    errors: Tensor = model(x) - y
    return errors.flatten(1).square().mean(1)


def estimates(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> dict[str, tuple[Floats, Floats]]:
    """For each parameter of a layer: the Kronecker diagonal and the true one, flat."""
    model.train()
    groups = build_groups(model, WHOLE)
    collector = Collector(model, groups, ExactFormulas())
    collector.arm([layer], Share(len(x)))
    per_example(model, x, y).mean().backward()  # type: ignore[no-untyped-call]
    parts = {part: total for (_, part, _), total in reduce_sums(collector.take(), CPU).items()}
    factors = ExactFormulas().finish(model.get_submodule(layer), parts)
    state = State(Flat.of({(layer, part): value for part, value in factors.items()}), NOTHING)
    exact = true_diagonal(model, x, y, layer)
    kronecker = {group.members[0].role: group_values(group, state, factored=True).astype(float) for group in groups if group.layer == layer}
    return {role: (values, exact[role]) for role, values in kronecker.items()}


def true_diagonal(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> dict[str, Floats]:
    """Mean over examples of squared gradients of the example's own loss; batch norms see the whole batch, as in training."""
    parameters = dict(model.get_submodule(layer).named_parameters(recurse=False))
    total = {role: torch.zeros_like(parameter, dtype=torch.float64) for role, parameter in parameters.items()}
    for index in range(len(x)):
        gradients = torch.autograd.grad(per_example(model, x, y)[index], list(parameters.values()))
        for role, gradient in zip(parameters, gradients, strict=True):
            total[role] += gradient.double() ** 2 / len(x)
    return {role: value.flatten().numpy() for role, value in total.items()}


def correlation(pair: tuple[Floats, Floats]) -> float:
    """Of log10 values over entries that are not dead."""
    kronecker, true = (np.log10(values + EPSILON) for values in pair)
    return float(np.corrcoef(kronecker, true)[0, 1])


class Surrounded(nn.Module):
    """The layer between a linear map of the inputs and a head."""

    def __init__(self, kind: Kind, x: Tensor) -> None:
        super().__init__()
        self.before = nn.Identity() if kind.vocabulary else nn.Linear(x.shape[-1], x.shape[-1])
        self.layer = kind.make()
        width = self.layer(self.before(x)).flatten(1).shape[1]
        self.after = nn.Sequential(nn.GELU(), nn.Flatten(), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3)."""
        out: Tensor = self.after(self.layer(self.before(x)))
        return out


def measure(name: str) -> Row:
    """Both correlations of one kind of layer."""
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = inputs(kind, generator)
    alone = nn.Sequential(kind.make())
    y = torch.randn(alone(x).shape, generator=generator)
    random = estimates(alone, x, y, "0")
    model = Surrounded(kind, x)
    teacher = Surrounded(kind, x)
    with torch.no_grad():
        target = 3 * teacher(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(TRAIN_STEPS):
        optimizer.zero_grad()
        per_example(model, x, target).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trained = estimates(model, x, target, "layer")
    return Row(
        kind=name,
        entries=sum(true.size for _, true in trained.values()),
        random_weight=correlation(random["weight"]),
        random_bias=correlation(random["bias"]) if "bias" in random else None,
        trained_weight=correlation(trained["weight"]),
        trained_bias=correlation(trained["bias"]) if "bias" in trained else None,
        ratio=float(np.median(trained["weight"][0] / (trained["weight"][1] + EPSILON))),
    )


def table(rows: list[Row]) -> str:
    """Markdown."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    lines = [
        "| layer | entries | random: weight | random: bias | trained: weight | trained: bias | Kronecker / true (median) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = (row.random_weight, row.random_bias, row.trained_weight, row.trained_bias)
        lines.append(f"| {row.kind} | {row.entries} | " + " | ".join(shown(value) for value in values) + f" | {row.ratio:.2g} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, or its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(name) for name in KINDS]
    print(json.dumps([asdict(row) for row in rows], indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
