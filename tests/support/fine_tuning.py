"""One small fine-tuning problem that a plain loop, the Hugging Face Trainer and Lightning must solve in the same way."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.events import Drift, Freeze
from fat_ray.freeze.freezer import Freezer

SPEC: dict[str, Any] = {
    "fisher": {"every": 2, "groups": {"blocks": 4, "min_block": 1}},
    "freeze": {"every": 4, "warmup_steps": 4, "threshold": 0.0, "cap": 0.6},
}
BATCH, STEPS, CLIP, LR, DECAY, WARMUP = 8, 16, 0.05, 0.02, 0.1, 3
"""Examples of a step; steps; largest gradient norm; AdamW; steps of a linear warm-up, after which the learning rate falls to 0."""


class Classifier(nn.Module):
    """Returns loss and logits, as the Trainer expects of a model. In double precision, so that no rounding moves a decision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU())
        self.head = nn.Linear(16, 3)
        self.double()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.body(x))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def examples(number: int = BATCH * STEPS) -> list[dict[str, Tensor]]:
    x = torch.randn(number, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [{"x": row, "labels": row[:3].argmax()} for row in x]


def joined(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def learning_rate_factor(step: int) -> float:
    return min(step / WARMUP, (STEPS - step) / (STEPS - WARMUP))


class OwnAdamW(torch.optim.AdamW):
    """An optimizer whose step is its own, so that nobody but itself knows whether parameters may come in pieces."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def optimizer_of(model: nn.Module, kind: type[torch.optim.AdamW] = torch.optim.AdamW) -> torch.optim.Optimizer:
    """As the Trainer makes it: norms and biases do not decay."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim > 1]
    vectors = [p for name, p in named if p.ndim == 1]
    return kind([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=LR, weight_decay=DECAY)


@dataclass
class Outcome:
    """What must not depend on who runs the loop."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    drifts: list[Drift] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)

    def emit(self, event: Drift | Freeze) -> None:
        if isinstance(event, Freeze):
            self.freezes.append(event)
        else:
            self.drifts.append(event)

    def keep(self, model: nn.Module) -> "Outcome":
        self.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
        return self


def plain_loop(kind: type[torch.optim.AdamW] = torch.optim.AdamW) -> Outcome:
    """Each step's whole batch in one backward."""
    rows, outcome, model = examples(), Outcome(), Classifier()
    optimizer = optimizer_of(model, kind)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    freezer = Freezer(model, optimizer, SPEC, emit=outcome.emit)
    for first in range(0, len(rows), BATCH):
        batch = joined(rows[first : first + BATCH])
        optimizer.zero_grad()
        freezer.arm(len(batch["x"]))
        model(**batch)["loss"].backward()
        freezer.after_backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
    return outcome.keep(model)


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert [(event.step, event.frozen) for event in found.freezes] == [(event.step, event.frozen) for event in expected.freezes]
    assert any(event.frozen for event in expected.freezes)
    for mine, other in zip(found.drifts, expected.drifts, strict=True):
        assert mine.step == other.step
        assert mine.active == other.active
        torch.testing.assert_close(numbers(mine.distance), numbers(other.distance), rtol=1e-3, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-9, atol=1e-9)


def numbers(values: list[float | None]) -> Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values])
