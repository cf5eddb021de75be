"""Kronecker factors of a layer from its inputs and the gradients of its outputs. Their outer product is the layer's diagonal Fisher.

For a layer with inputs h and loss gradients s with respect to its outputs, over all examples and positions (arXiv 2405.16397),

    H = mean(h²)    S = mean(s²)    F_weight = S ⊗ H    F_bias = S

Everything here is a *sum* with its count, so that parts of a batch, micro-batches and ranks add up exactly; squares are taken in float32.
Sums run over examples before anything else: no patch matrix is ever built. A layer's factors are named by where they stand in the weight:

    row         one value per row (dimension 0) of the weight
    column      (g, *weight.shape[1:]): the factor of the columns, for each of g channel groups of rows
                norms: `row` and `column` both have the weight's own shape and are multiplied entry by entry
    bias_row    one value per bias entry, where it is not `row`
    bias_column one value for the whole bias, where it is not 1
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Part = tuple[Tensor, float]
"""A sum and the count that divides it."""

Parts = dict[str, Part]
Floats = NDArray[np.float64]
Factors = dict[str, NDArray[Any]]
"""Finished factors by name, float64, or float32 where the released code is followed."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class Formulas(Protocol):
    """Which layers have factors, and how they are computed."""

    def covers(self, module: nn.Module) -> bool:
        """Whether the module's Fisher is a product of factors."""
        ...

    def inputs(self, module: nn.Module, x: Tensor) -> Parts:
        """Sums over the inputs of one call."""
        ...

    def outputs(self, module: nn.Module, gradient: Tensor) -> Parts:
        """Sums over the output gradients of one call; `gradient` is float32.

        With `example_gradients` all are sums of squares, and the caller scales them; else the gradient is scaled already.
        """
        ...

    @property
    def example_gradients(self) -> bool:
        """Whether gradients are those of each example's own loss (True), or of the mean loss over the global batch (False)."""
        ...

    def finish(self, module: nn.Module, sums: Mapping[str, tuple[Floats, float]]) -> Factors:
        """Factors from sums and counts over the whole global batch."""
        ...


class ExactFormulas:
    """The definition above, for every layer that has it. Subclasses count as their base unless they change its forward."""

    example_gradients = True

    def covers(self, module: nn.Module) -> bool:
        """See `Formulas`."""
        return _handlers(module) is not None

    def inputs(self, module: nn.Module, x: Tensor) -> Parts:
        """See `Formulas`."""
        handlers = _handlers(module)
        assert handlers is not None
        return handlers[0](module, x if isinstance(module, nn.Embedding) else x.float())

    def outputs(self, module: nn.Module, gradient: Tensor) -> Parts:
        """See `Formulas`."""
        handlers = _handlers(module)
        assert handlers is not None
        return handlers[1](module, gradient)

    def finish(self, module: nn.Module, sums: Mapping[str, tuple[Floats, float]]) -> Factors:  # noqa: ARG002  the protocol's
        """Means."""
        return {part: total / count for part, (total, count) in sums.items()}


def _linear_inputs(_: nn.Module, x: Tensor) -> Parts:
    flat = x.reshape(-1, x.shape[-1])
    return {"column": ((flat * flat).sum(0, keepdim=True), flat.shape[0])}


def _linear_outputs(_: nn.Module, s: Tensor) -> Parts:
    flat = s.reshape(-1, s.shape[-1])
    return {"row": ((flat * flat).sum(0), flat.shape[0])}


def _embedding_outputs(_: nn.Module, s: Tensor) -> Parts:
    flat = s.reshape(-1, s.shape[-1])
    return {"column": ((flat * flat).sum(0, keepdim=True), flat.shape[0])}


def _convolution_inputs(module: nn.Module, x: Tensor) -> Parts:
    assert isinstance(module, CONVOLUTIONS)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    margins = module._reversed_padding_repeated_twice  # noqa: SLF001  in functional.pad's order; it also resolves padding="same"
    if not any(margins) and all(kernel == stride == 1 for kernel, stride in zip(module.kernel_size, module.stride, strict=True)):
        squares, count = _per_channel(x)  # every value is a patch of its own
        return {"column": (squares.reshape(module.groups, -1, *module.kernel_size), count)}
    squares = functional.pad(sum_over_examples(x * x)[None], margins, mode=mode)[0]
    total, num_positions = patch_sums(squares, module)
    return {"column": (total.reshape(module.groups, -1, *module.kernel_size), x.shape[0] * num_positions)}


def sum_over_examples(x: Tensor) -> Tensor:
    """`x.sum(0)`, several times faster where channels come last in memory."""
    if x.ndim == 4 and not x.is_contiguous():
        return x.movedim(1, -1).sum(0).movedim(-1, 0)
    return x.sum(0)


def patch_sums(squares: Tensor, module: Convolution) -> tuple[Tensor, int]:
    """Sum over positions of the squared values under each tap of a kernel, one spatial dimension at a time.

    Args:
        squares: Squares summed over examples and padded, (C, *spatial).
        module: Whose kernel, stride and dilation.

    Returns:
        (C, *kernel), and the number of positions.
    """
    num_positions = 1
    for kernel, stride, dilation in zip(module.kernel_size, module.stride, module.dilation, strict=True):
        positions = (squares.shape[1] - dilation * (kernel - 1) - 1) // stride + 1
        span = stride * (positions - 1) + 1
        taps = [squares[:, tap * dilation : tap * dilation + span : stride].sum(1) for tap in range(kernel)]
        # the summed dimension leaves, its taps go last, so that the next spatial one is again dimension 1
        squares = torch.stack(taps, dim=-1)
        num_positions *= positions
    return squares, num_positions


def _per_channel(x: Tensor) -> Part:
    dims = [dim for dim in range(x.ndim) if dim != 1]
    return (x * x).sum(dims), x.numel() // x.shape[1]


def _channel_outputs(_: nn.Module, s: Tensor) -> Parts:
    return {"row": _per_channel(s)}


def _channel_inputs(_: nn.Module, x: Tensor) -> Parts:
    return {"row": _per_channel(x)}


def _transposed_outputs(module: nn.Module, s: Tensor) -> Parts:
    """A transposed convolution reads its output's gradient as a convolution reads its input: the factors change places."""
    assert isinstance(module, TRANSPOSED)
    squares = sum_over_examples(s * s)
    margins: list[int] = [int(padding) for padding in reversed(module.padding) for _ in range(2)]  # type: ignore[call-overload]
    total, num_positions = patch_sums(functional.pad(squares, margins), module)
    total = total.reshape(module.groups, -1, *module.kernel_size)
    return {"column": (total, s.shape[0] * num_positions), "bias_row": _per_channel(s)}


def _batch_norm_inputs(module: nn.Module, x: Tensor) -> Parts:
    """Second moment of the normalised input, from the statistics that normalised it."""
    assert isinstance(module, nn.modules.batchnorm._NormBase)  # noqa: SLF001
    squares, count = _per_channel(x)
    # plain sums are up to 30 times faster than torch.var_mean over strided dimensions; the difference is taken in float64
    mean = x.sum([dim for dim in range(x.ndim) if dim != 1]).double() / count
    variance = (squares.double() / count - mean * mean).clamp_min(0.0)
    if not module.training and module.running_mean is not None and module.running_var is not None:
        moment = (variance + (mean - module.running_mean) ** 2) / (module.running_var + module.eps)
    else:
        moment = variance / (variance + module.eps)
    return {"column": (moment * count, count)}


def _layer_norm_inputs(module: nn.Module, x: Tensor) -> Parts:
    shape = module.normalized_shape
    assert isinstance(shape, tuple)
    normalise = functional.rms_norm if isinstance(module, nn.RMSNorm) else functional.layer_norm
    eps = module.eps
    assert eps is None or isinstance(eps, float)
    normal = normalise(x, list(shape), eps=eps) if eps is not None else normalise(x, list(shape))
    return {"column": _per_normalised_entry(normal, shape)}


def _layer_norm_outputs(module: nn.Module, s: Tensor) -> Parts:
    shape = module.normalized_shape
    assert isinstance(shape, tuple)
    return {"row": _per_normalised_entry(s, shape)}


def _per_normalised_entry(x: Tensor, shape: tuple[int, ...]) -> Part:
    flat = x.reshape(-1, *shape)
    return (flat * flat).sum(0), flat.shape[0]


def _group_norm_inputs(module: nn.Module, x: Tensor) -> Parts:
    assert isinstance(module, nn.GroupNorm)
    return {"column": _per_channel(functional.group_norm(x, module.num_groups, eps=module.eps))}


def _embedding_inputs(module: nn.Module, x: Tensor) -> Parts:
    """How often each row was read: the input of an embedding is one-hot."""
    assert isinstance(module, nn.Embedding)
    return {"row": (torch.bincount(x.flatten(), minlength=module.num_embeddings).float(), x.numel())}


Handler = tuple[Callable[[nn.Module, Tensor], Parts], Callable[[nn.Module, Tensor], Parts]]

_HANDLERS: dict[type[nn.Module], Handler] = {
    nn.Linear: (_linear_inputs, _linear_outputs),
    nn.LayerNorm: (_layer_norm_inputs, _layer_norm_outputs),
    nn.RMSNorm: (_layer_norm_inputs, _layer_norm_outputs),
    nn.GroupNorm: (_group_norm_inputs, _channel_outputs),
    nn.Embedding: (_embedding_inputs, _embedding_outputs),
    **dict.fromkeys(CONVOLUTIONS, (_convolution_inputs, _channel_outputs)),
    **dict.fromkeys(TRANSPOSED, (_channel_inputs, _transposed_outputs)),
    **dict.fromkeys(BATCH_NORMS, (_batch_norm_inputs, _channel_outputs)),
}


def _handlers(module: nn.Module) -> Handler | None:
    """The handlers of the first base class whose forward the module really runs. A sliced layer computes what its plain class does."""
    kind = getattr(type(module), "plain_type", type(module))
    for base in kind.__mro__:
        if base in _HANDLERS and kind.forward is base.forward:
            return _HANDLERS[base]
    return None
