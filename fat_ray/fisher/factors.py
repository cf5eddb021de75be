"""Kronecker factors of a layer: H from its inputs, S from the gradients of its outputs. Their outer product is the diagonal Fisher.

For a layer with inputs h (a 1 appended for the bias) and loss gradients s with respect to its outputs, over all examples and positions,

    H = mean(h²)    S = mean(s²)    F_weight = S ⊗ H    F_bias = S

(arXiv 2405.16397). Everything here returns *sums* and a count, so that parts of a batch, micro-batches and ranks add up exactly. Squares
are taken in float32. Sums run over examples before anything else: no patch matrix is ever built.

Shapes: B examples, T positions, I inputs, O outputs, g channel groups.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def has_factors(module: nn.Module) -> bool:
    """Whether the module's Fisher is the product of two factors; exactly these classes, since a subclass may compute something else."""
    return type(module) in (nn.Linear, nn.LayerNorm, *CONVOLUTIONS, *BATCH_NORMS)


def input_sums(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Sum of squared inputs per column of the weight, and the number of rows summed.

    Args:
        module: A layer with factors.
        x: Its input: (B, …, I) for Linear and LayerNorm, (B, C, *spatial) for the others.

    Returns:
        float32 sums of shape (1, I) for Linear, (g, C/g·kernel) for convolutions, (I,) for LayerNorm (of the normalised input), (C,) for
        batch norms, whose normalised input has second moment 1 by construction; and the count that divides them.
    """
    x = x.detach().float()
    if isinstance(module, nn.Linear):
        flat = x.reshape(-1, x.shape[-1])
        return (flat * flat).sum(0, keepdim=True), flat.shape[0]
    if isinstance(module, nn.LayerNorm):
        normal = torch.nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        flat = normal.reshape(-1, *module.normalized_shape)
        return (flat * flat).sum(0).flatten(), flat.shape[0]
    if isinstance(module, CONVOLUTIONS):
        return _patch_sums(module, x)
    count = x.numel() // x.shape[1]
    return x.new_full((x.shape[1],), float(count)), count


def _patch_sums(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> tuple[Tensor, int]:
    """Sum over examples and output positions of the squared patch values, shape (g, C/g·kernel), one spatial dimension at a time."""
    squares = (x * x).sum(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    # the module's own padding in torch.nn.functional.pad's order; it also resolves padding="same"
    squares = pad(squares.unsqueeze(0), module._reversed_padding_repeated_twice, mode=mode).squeeze(0)  # noqa: SLF001
    num_positions = 1
    for kernel, stride, dilation in zip(module.kernel_size, module.stride, module.dilation, strict=True):
        positions = (squares.shape[1] - dilation * (kernel - 1) - 1) // stride + 1
        span = stride * (positions - 1) + 1
        taps = [squares[:, tap * dilation : tap * dilation + span : stride].sum(1) for tap in range(kernel)]
        # the summed dimension leaves, its kernel dimension goes last, so that the next spatial one is again dimension 1
        squares = torch.stack(taps, dim=-1)
        num_positions *= positions
    return squares.reshape(module.groups, -1), x.shape[0] * num_positions


def output_sums(module: nn.Module, gradient: Tensor, num_examples: int) -> tuple[Tensor, int]:
    """Sum of squared output gradients per row of the weight, and the number of rows summed.

    Args:
        module: A layer with factors.
        gradient: Gradient of the batch's mean loss with respect to the layer's output.
        num_examples: B; multiplying by it turns the gradient of the mean into that of each example's own loss, so that S does not
            depend on how a batch is cut up.
    """
    s = gradient.detach().float() * num_examples
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        width = module.out_features if isinstance(module, nn.Linear) else math.prod(module.normalized_shape)
        flat = s.reshape(-1, width)
        return (flat * flat).sum(0), flat.shape[0]
    dims = [dim for dim in range(s.ndim) if dim != 1]
    return (s * s).sum(dims), s.numel() // s.shape[1]
