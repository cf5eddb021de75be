"""Metrics of whole sets: each rank sums over its share, the sums are added in rank order, and the task turns them into metrics."""

from collections import Counter

import torch
import torch.distributed as dist
from torch import nn

from fat_ray.fisher.reduce import world
from fat_ray.tasks.base import ExampleSet, Task, to_device

EVALUATION_BATCH = 16
"""Examples per forward on each rank; it bounds memory and does not change a metric."""


def evaluate(task: Task, model: nn.Module, examples: ExampleSet, device: torch.device) -> dict[str, float]:
    """Metrics of a set, equal on every rank. Leaves the model in training mode.

    Args:
        task: Sums and metrics.
        model: The network, not its DDP wrapper; its buffers are taken from rank 0 first.
        examples: The set; ranks take turns through it.
        device: Where the model is.
    """
    rank, size = world()
    if size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
    model.eval()
    sums: Counter[str] = Counter()
    mine = range(rank, len(examples), size)
    with torch.inference_mode():
        for first in range(0, len(mine), EVALUATION_BATCH):
            batch = to_device(examples.batch(mine[first : first + EVALUATION_BATCH]), device)
            sums.update(task.accumulate(model, batch))
    model.train()
    return task.finish(_add(sums, size))


def _add(sums: Counter[str], world_size: int) -> dict[str, float]:
    shares: list[dict[str, float]] = [dict(sums)] * world_size
    if world_size > 1:
        dist.all_gather_object(shares, dict(sums))
    total: Counter[str] = Counter()
    for share in shares:  # in rank order on every rank, so that rounding is the same everywhere
        total.update(share)
    return dict(total)
