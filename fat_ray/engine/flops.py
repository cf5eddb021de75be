"""Analytic floating point operations of a training step, two per multiply-add, from what autograd will really compute.

Counted are Linear and convolution layers (all else is negligible beside them): forward; backward to the input where the input has a
gradient; backward to the weight where the weight is in autograd. A tensor frozen in part still computes its whole weight gradient and is
counted so. `torch.utils.flop_counter` counts the same, but for grouped convolutions, whose weight gradients it overstates by the number of
groups (tests/numerics/test_flops.py).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def forward_flops(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Operations of one call of a counted layer."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    # each weight entry is used once per output position; a transposed convolution's once per input position
    positions = x if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)) else output
    if isinstance(module, nn.Linear):
        return 2 * weight.numel() * (output.numel() // output.shape[-1])
    return 2 * weight.numel() * positions.shape[0] * math.prod(positions.shape[2:])


class FlopMeter:
    """Counts one training forward when armed; the backward's share follows from which tensors have gradients.

    Args:
        model: The network, not its DDP wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
        self._handles: list[RemovableHandle] = []
        self._flops = 0

    def arm(self) -> None:
        """Counts the next forward with gradients, until `take`."""
        self._flops = 0
        self._handles = [layer.register_forward_hook(self._count) for layer in self._layers]

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *_: Any) -> None:
        if torch.is_grad_enabled():
            weight = module.weight
            assert isinstance(weight, Tensor)
            self._flops += forward_flops(module, inputs[0], output) * (1 + inputs[0].requires_grad + weight.requires_grad)

    def take(self) -> int:
        """Operations of the armed step on this rank, forward and backward; disarms."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return self._flops
