"""How often a training step uses each entry of a layer's weight: what decides whether slicing pays, see `slicing_rule`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fat_ray.fisher.collector import step_eagerly
from fat_ray.fisher.reduce import Ranks, all_sum, world


class PositionCounter:
    """Counts the positions of the outputs of Linear and convolution layers, over the micro-batches of one step.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._counts = {module: 0 for module in model.modules() if _width(module)}
        self._handles: list[RemovableHandle] = []

    def arm(self) -> None:
        """Counts all forwards with gradients until `take`."""
        step_eagerly(on=True)
        if not self._handles:
            self._handles = [module.register_forward_hook(self._count) for module in self._counts]

    def _count(self, module: nn.Module, _: Any, output: Tensor) -> None:
        if torch.is_grad_enabled():
            self._counts[module] += output.numel() // _width(module)

    def take(self, device: torch.device, ranks: Ranks) -> Mapping[nn.Module, int]:
        """Positions per step, the mean over ranks: all slice alike. Layers that were not seen are left out; disarms.

        Args:
            device: Where the collective runs.
            ranks: Between whom.
        """
        step_eagerly(on=False)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        counts = all_sum(torch.tensor([*self._counts.values()], dtype=torch.float64, device=device), ranks).tolist()
        size = world(ranks)[1]
        return {module: math.ceil(count / size) for module, count in zip(self._counts, counts, strict=True) if count}


def _width(module: nn.Module) -> int:
    """Values that the layer computes at each position; 0 for layers that are not counted."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else 0
