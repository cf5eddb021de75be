"""What a task is: a model, data with splits, a loss, and metrics over whole sets. Bring your own by implementing `Task`."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
"""Tensors whose first dimension is the example; the task alone gives them meaning."""

Direction = Literal["maximize", "minimize"]


class ExampleSet(Protocol):
    """A set of examples that can be read in any order."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Reads examples on the CPU.

        Args:
            indices: Positions in the set.
            seeds: One seed per example for its random augmentation; None: no augmentation. The same index and seed give the
                same tensors in every process, so that a run does not depend on how its batch is spread over workers.
        """
        ...


class Task(Protocol):
    """One thing to fine-tune. Built once per worker from its specification.

    Attributes:
        metrics: The metrics that `finish` returns, each with the direction that is better, in display order.
    """

    metrics: Mapping[str, Direction]

    def build_model(self) -> nn.Module:
        """The model with its pretrained weights; what is random in it comes from torch's global generator, seeded before."""
        ...

    def train_set(self) -> ExampleSet:
        """The training split."""
        ...

    def evaluation_sets(self) -> Mapping[str, ExampleSet]:
        """``val``, which a search may look at, and any number of others (``test``, ``zero_shot``) that are reported only."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss: a scalar, the mean over the examples of the batch."""
        ...

    def accumulate(self, model: nn.Module, batch: Batch) -> Mapping[str, float]:
        """Sums over the examples of the batch from which `finish` computes metrics; called without gradients, in eval mode.

        Sums of several batches and workers are added, so that metrics are those of the whole set.
        """
        ...

    def finish(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a whole set from its sums; the keys are those of `metrics`."""
        ...


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device."""
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)
