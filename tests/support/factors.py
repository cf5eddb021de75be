"""Collecting factors of one layer or network in a test, with or without micro-batches and ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fat_ray.fisher.collector import Collector, Share, Sums
from fat_ray.fisher.factors import ExactFormulas, Formulas
from fat_ray.fisher.flat import Array, PartKey
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter
from fat_ray.fisher.reduce import reduce_sums, world
from fat_ray.fisher.state import State
from fat_ray.spec.run import GroupSpec

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Mean loss over the examples of (model, inputs, targets)."""

CPU = torch.device("cpu")
WHOLE = GroupSpec(blocks=1, min_block=1)


FactorState = dict[PartKey, Array]
"""Finished factors by (layer, part)."""


def collect(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, *, parts: int = 1, halves: bool = False, formulas: Formulas | None = None
) -> list[FactorState]:
    """Factors of each half (or of the whole) of this rank's share of a batch, spread over micro-batches.

    Args:
        model: In training mode.
        loss: See `Loss`; it is divided by `parts`, as gradient accumulation does.
        x: Inputs of the global batch.
        y: Its targets.
        parts: Micro-batches.
        halves: Whether to keep halves apart.
        formulas: ExactFormulas unless given.
    """
    formulas = formulas or ExactFormulas()
    rank, size = world()
    mine_x, mine_y = x[rank::size], y[rank::size]
    collector = Collector(model, build_groups(model, WHOLE), formulas, halves=halves)
    first = 0
    for x_part, y_part in zip(mine_x.chunk(parts), mine_y.chunk(parts), strict=True):
        share = Share(len(mine_x), rank, size, first, len(x_part))
        collector.arm(list(collector.layers), share)
        (loss(model, x_part, y_part) / parts).backward()
        first += len(x_part)
    return states(collector.take(), collector.layers, formulas, (0, 1) if halves else (1,))


def states(sums: Sums, layers: dict[str, nn.Module], formulas: Formulas, halves: Sequence[int]) -> list[FactorState]:
    """Reduced and finished factors of each half."""
    totals = reduce_sums(sums, CPU)
    found: list[FactorState] = []
    for half in halves:
        state = {}
        for layer, module in layers.items():
            parts = {part: total for (of, part, h), total in totals.items() if of == layer and h == half}
            if parts:
                state |= {(layer, part): value for part, value in formulas.finish(module, parts).items()}
        found.append(state)
    return found


def watched_states(meter: DriftMeter) -> list[list[State]]:
    """The states of each update from now on, one per half, as they are handed over to be compared."""
    seen: list[list[State]] = []
    compare = meter._comparison.compare

    def watch(states: list[State], *args: Any) -> Any:
        seen.append(states)
        return compare(states, *args)

    meter._comparison.compare = watch  # type: ignore[method-assign]
    return seen
