"""The factors of the released code, exactly, its errors included (docs/method.md, section 4): for parity and honest comparison only.

Gradients are those of the mean loss over the global batch, as it is backpropagated. B is the number of its examples. Convolutions ignore
dilation, padding modes and string padding, as released. What is squared after a sum over the batch is kept as that sum until `finish`.
"""

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.fisher.factors import Factors, Floats, Parts, patch_sums, sum_over_examples

_TYPES = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)


class ReleasedFormulas:
    """Linear, Conv2d, BatchNorm2d and LayerNorm; everything else has no factors."""

    example_gradients = False

    def covers(self, module: nn.Module) -> bool:
        """Instances of the four classes, subclasses included, as released."""
        return isinstance(module, _TYPES)

    def inputs(self, module: nn.Module, x: Tensor) -> Parts:
        """Sums over the inputs of one call; counts are B, or what else divides them."""
        x = x.float()
        if isinstance(module, nn.Linear):
            flat = x.reshape(-1, x.shape[-1])
            return {"column": ((flat * flat).sum(0, keepdim=True), flat.shape[0])}
        if isinstance(module, nn.Conv2d):
            return _convolution(module, x)
        if isinstance(module, nn.BatchNorm2d):
            return {"column": (x.sum((0, 2, 3)) / (x.shape[2] * x.shape[3]) ** 2, x.shape[0])}
        # LayerNorm: every dimension but dimension 1 is reduced, the batch too
        dims = [dim for dim in range(x.ndim) if dim != 1]
        reduced = math.prod(x.shape[dim] for dim in dims if dim)
        return {"column": (x.sum(dims) / reduced**2, x.shape[0])}

    def outputs(self, module: nn.Module, gradient: Tensor) -> Parts:
        """Sums over the output gradients of one call."""
        if isinstance(module, nn.Linear):
            flat = gradient.reshape(-1, gradient.shape[-1])
            return {"row": ((flat * flat).sum(0), flat.shape[0])}
        if isinstance(module, nn.Conv2d):
            return {"row": ((gradient * gradient).sum((0, 2, 3)), gradient.numel() // gradient.shape[1])}
        if isinstance(module, nn.BatchNorm2d):
            return {"row": (gradient.sum((0, 2, 3)), gradient.shape[0])}
        return {"row": (gradient.sum(list(range(gradient.ndim - 1))), gradient.shape[0])}

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
        return {"column": moments[:1], "row": np.square(rows) / row_count, "bias_column": moments[1:]}


def _convolution(module: nn.Conv2d, x: Tensor) -> Parts:
    """Patches with zero padding and no dilation, summed over examples, positions and groups."""
    padding = module.padding if isinstance(module.padding, tuple) else (0, 0)
    squares = functional.pad(sum_over_examples(x * x), [padding[1], padding[1], padding[0], padding[0]])
    plain = nn.Conv2d(1, 1, module.kernel_size, module.stride, device="meta")  # type: ignore[arg-type]  # the kernel without dilation
    total, num_positions = patch_sums(squares, plain)
    total = total.reshape(module.groups, -1, *total.shape[1:]).sum(0, keepdim=True)
    count = x.shape[0] * (num_positions * total.numel() if module.bias is not None else 1)
    return {"column": (total, count)}
