"""The factors of the released code, exactly, its errors included (docs/method.md, section 4): for parity and honest comparison only.

Gradients are those of the mean loss over the global batch, as it is backpropagated. B is the number of its examples. Convolutions ignore
dilation, padding modes and string padding, as released. What is squared after a sum over the batch is kept as that sum until `finish`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from fat_ray.fisher import squares
from fat_ray.fisher.factors import Factors, Floats, Parts, Reader, Readers


class ReleasedFormulas:
    """Linear, Conv2d, BatchNorm2d and LayerNorm, subclasses included; everything else has no factors."""

    example_gradients = False

    def readers(self, module: nn.Module) -> Readers | None:
        """Sums whose counts are B, or what else divides them."""
        if isinstance(module, nn.Linear):
            return _linear_inputs, _linear_gradients
        if isinstance(module, nn.Conv2d):
            return _convolution_inputs(module), _channel_gradients
        if isinstance(module, nn.BatchNorm2d):
            return _batch_norm_inputs, _batch_norm_gradients
        return (_layer_norm_inputs, _layer_norm_gradients) if isinstance(module, nn.LayerNorm) else None

    def finish(self, module: nn.Module, sums: Mapping[str, tuple[Floats, float]]) -> Factors:
        """Squares what is squared after the sum, and sets the entry of the bias.

        All in float32, as released: where S saturates, its last bits decide about bins.
        """
        columns, count = sums["column"][0].astype(np.float32), np.float32(sums["column"][1])
        rows, row_count = sums["row"][0].astype(np.float32), np.float32(sums["row"][1])
        if isinstance(module, nn.Linear):
            return {"column": columns / count, "row": rows / row_count, "bias_column": np.ones(1, np.float32)}
        if isinstance(module, nn.Conv2d):
            entry = np.array([module.groups / columns.size], np.float32)
            return {"column": columns / count, "row": rows / row_count, "bias_column": entry}
        moments = np.array([np.square(columns).sum(), columns.size], np.float32) / count**2
        shape = module.normalized_shape if isinstance(module, nn.LayerNorm) else rows.shape
        row = np.broadcast_to(np.square(rows) / row_count, shape)  # a LayerNorm over several dimensions has S of the last
        return {"column": moments[:1], "row": row, "bias_column": moments[1:]}


def _linear_inputs(x: Tensor) -> Parts:
    return {"column": (squares.per_feature(x)[None], x.numel() // x.shape[-1])}


def _linear_gradients(s: Tensor) -> Parts:
    return {"row": (squares.per_feature(s), s.numel() // s.shape[-1])}


def _convolution_inputs(module: Any) -> Reader:
    """Patches with zero padding and no dilation, summed over examples, positions and groups."""
    padding = module.padding if isinstance(module.padding, tuple) else (0, 0)
    geometry = zip(module.kernel_size, module.stride, (1, 1), padding, padding, strict=True)
    axes = [squares.Axis(*axis) for axis in geometry]

    def inputs(x: Tensor) -> Parts:
        total, num_positions = squares.under_taps(x, axes)
        total = total.reshape(module.groups, -1, *module.kernel_size).sum(0, keepdim=True)
        return {"column": (total, x.shape[0] * (num_positions * total.numel() if module.bias is not None else 1))}

    return inputs


def _channel_gradients(s: Tensor) -> Parts:
    return {"row": (squares.per_channel(s), s.numel() // s.shape[1])}


def _batch_norm_inputs(x: Tensor) -> Parts:
    return {"column": (x.sum((0, 2, 3)) / (x.shape[2] * x.shape[3]) ** 2, x.shape[0])}


def _batch_norm_gradients(s: Tensor) -> Parts:
    return {"row": (s.sum((0, 2, 3)), s.shape[0])}


def _layer_norm_inputs(x: Tensor) -> Parts:
    """Every dimension but dimension 1 is reduced, the batch too."""
    dims = [dim for dim in range(x.ndim) if dim != 1]
    reduced = math.prod(x.shape[dim] for dim in dims if dim)
    return {"column": (x.sum(dims) / reduced**2, x.shape[0])}


def _layer_norm_gradients(s: Tensor) -> Parts:
    return {"row": (s.sum(list(range(s.ndim - 1))), s.shape[0])}
