"""Parameters without factors over several ranks: DDP's averaged gradient is that of the global batch, and every rank knows the same."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.engine.step import wrap
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.factors import ExactFormulas
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter
from fat_ray.fisher.reduce import world
from fat_ray.spec.run import DriftSpec, FisherSpec, GroupSpec
from tests.support.distributed import run_distributed

CPU = torch.device("cpu")
BATCH, TOKENS, WIDTH, VOCABULARY = 8, 5, 16, 11
GROUPS = GroupSpec(blocks=2, min_block=1)


class Attending(nn.Module):
    """A tied embedding, a bare parameter and attention, none of which has factors; the last layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.vocabulary = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.vocabulary.weight = self.embed.weight
        self.head = nn.Linear(VOCABULARY, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(functional.gelu(self.vocabulary(x)).mean(1))  # type: ignore[no-any-return]


def trained() -> dict[str, Any]:
    """Six collections on each rank's share of fixed batches, with an update between them."""
    torch.manual_seed(0)
    model = Attending()
    wrapped = wrap(model)
    groups = build_groups(model, GROUPS)
    meter = DriftMeter(model, groups, FisherSpec(groups=GROUPS), DriftSpec())
    collector = Collector(model, groups, ExactFormulas(), halves=meter.halves)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    rank, size = world()
    generator = torch.Generator().manual_seed(1)
    squares: list[dict[str, np.ndarray]] = []

    def squared_gradient(name: str) -> np.ndarray:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        squares[-1][name] = gradient.double().square().numpy()
        return squares[-1][name]

    found = []
    for _ in range(6):
        tokens = torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=generator)[rank::size]
        squares.append({})
        collector.arm([group.layer for group in groups], Share(len(tokens), rank, size))
        optimizer.zero_grad()
        functional.cross_entropy(wrapped(tokens), tokens[:, 0] % 3).backward()
        found.append(meter.update(collector.take(), squared_gradient, np.ones(len(groups), bool), CPU))
        optimizer.step()
    return {
        "squares": squares,
        "distance": [update.distance.tolist() for update in found],
        "measured": [update.measured.tolist() for update in found],
        "factored": {group.layer for group, on in zip(groups, meter.factored, strict=True) if on},
    }


def test_attention_ties_and_bare_parameters_follow_one_process() -> None:
    alone = trained()
    first, second = run_distributed(trained, 2)
    assert first["distance"] == second["distance"]
    assert first["measured"] == second["measured"] == alone["measured"]
    assert alone["factored"] == {"head"}
    assert all(alone["measured"][-1])
    for mine, theirs, expected in zip(first["squares"], second["squares"], alone["squares"], strict=True):
        assert mine.keys() == expected.keys() == {"embed.weight", "position"} | {name for name in expected if name.startswith("attention.")}
        for name, values in expected.items():
            assert np.array_equal(mine[name], theirs[name])
            np.testing.assert_allclose(mine[name], values, rtol=1e-3, atol=1e-6 * values.max())
