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

from fat_ray.fisher import squares

Part = tuple[Tensor, float]
"""A sum and the count that divides it."""

Parts = dict[str, Part]
Floats = NDArray[np.float64]
Factors = dict[str, NDArray[Any]]
"""Finished factors by name, float64, or float32 where the released code is followed."""

Reader = Callable[[Tensor], Parts]
"""Sums over the inputs of one call of a layer, or over the gradients of its outputs."""

Readers = tuple[Reader, Reader]
"""For inputs (float32, or integers), and for gradients (float32)."""


class Formulas(Protocol):
    """Which layers have factors, and how they are computed."""

    def readers(self, module: nn.Module) -> Readers | None:
        """How a module is read; None if its Fisher is not a product of factors.

        With `example_gradients` what is read of gradients are sums of squares, and the caller scales them; else the gradient is scaled
        already.
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

    def readers(self, module: nn.Module) -> Readers | None:
        """See `Formulas`."""
        # a sliced layer computes what its plain class does
        kind = getattr(type(module), "plain_type", type(module))
        for base in kind.__mro__:
            if base in _READERS and kind.forward is base.forward:
                return _READERS[base](module)
        return None

    def finish(self, module: nn.Module, sums: Mapping[str, tuple[Floats, float]]) -> Factors:  # noqa: ARG002  the protocol's
        """Means."""
        return {part: total / count for part, (total, count) in sums.items()}


def _feature_columns(x: Tensor) -> Parts:
    return {"column": (squares.per_feature(x)[None], x.numel() // x.shape[-1])}


def _feature_rows(s: Tensor) -> Parts:
    return {"row": (squares.per_feature(s), s.numel() // s.shape[-1])}


def _channel_rows(s: Tensor) -> Parts:
    return {"row": (squares.per_channel(s), s.numel() // s.shape[1])}


def _linear(_: nn.Module) -> Readers:
    return _feature_columns, _feature_rows


def _convolution(module: Any) -> Readers:
    margins = module._reversed_padding_repeated_twice[::-1]  # noqa: SLF001  after, before of each dimension; it resolves padding="same"
    geometry = zip(module.kernel_size, module.stride, module.dilation, margins[1::2], margins[::2], strict=True)
    axes = [squares.Axis(*axis, module.padding_mode) for axis in geometry]
    shape = module.groups, -1, *module.kernel_size

    def inputs(x: Tensor) -> Parts:
        total, num_positions = squares.under_taps(x, axes)
        return {"column": (total.reshape(shape), x.shape[0] * num_positions)}

    return inputs, _channel_rows


def _transposed(module: Any) -> Readers:
    """A transposed convolution reads its output's gradient as a convolution reads its input: the factors change places."""
    # what is added to an end makes no position; less than a stride of it cannot anyway
    ends = [pad - more // step * step for pad, more, step in zip(module.padding, module.output_padding, module.stride, strict=True)]
    geometry = zip(module.kernel_size, module.stride, module.dilation, module.padding, ends, strict=True)
    axes = [squares.Axis(*axis) for axis in geometry]
    shape = module.groups, -1, *module.kernel_size

    def gradients(s: Tensor) -> Parts:
        total, num_positions = squares.under_taps(s, axes)
        column = total.reshape(shape), s.shape[0] * num_positions
        return {"column": column, "bias_row": (squares.per_channel(s), s.numel() // s.shape[1])}

    return _channel_rows, gradients


def _batch_norm(module: Any) -> Readers:
    def inputs(x: Tensor) -> Parts:
        """Second moment of the normalised input, from the statistics that normalised it."""
        count = x.numel() // x.shape[1]
        # plain sums are up to 30 times faster than torch.var_mean over strided dimensions; the difference is taken in float64
        mean = x.sum([dim for dim in range(x.ndim) if dim != 1]).double() / count
        variance = (squares.per_channel(x).double() / count - mean * mean).clamp_min(0.0)
        if not module.training and module.running_mean is not None and module.running_var is not None:
            moment = (variance + (mean - module.running_mean) ** 2) / (module.running_var + module.eps)
        else:
            moment = variance / (variance + module.eps)
        return {"column": (moment * count, count)}

    return inputs, _channel_rows


def _layer_norm(module: Any) -> Readers:
    shape, eps = module.normalized_shape, module.eps
    normalise = functional.rms_norm if isinstance(module, nn.RMSNorm) else functional.layer_norm
    options = {} if eps is None else {"eps": eps}

    def entries(x: Tensor) -> Part:
        flat = x.flatten(-len(shape))
        return squares.per_feature(flat).reshape(shape), x.numel() // flat.shape[-1]

    def inputs(x: Tensor) -> Parts:
        return {"column": entries(normalise(x, shape, **options))}

    def gradients(s: Tensor) -> Parts:
        return {"row": entries(s)}

    return inputs, gradients


def _group_norm(module: Any) -> Readers:
    def inputs(x: Tensor) -> Parts:
        normal = functional.group_norm(x, module.num_groups, eps=module.eps)
        return {"column": (squares.per_channel(normal), x.numel() // x.shape[1])}

    return inputs, _channel_rows


def _embedding(module: Any) -> Readers | None:
    if module.scale_grad_by_freq:
        return None  # then the gradient of the weight is no product of inputs and outputs

    def inputs(x: Tensor) -> Parts:
        """How often each row was read: the input of an embedding is one-hot, and nothing where it pads."""
        times = torch.bincount(x.flatten(), minlength=module.num_embeddings).float()
        if module.padding_idx is not None:
            times[module.padding_idx] = 0
        return {"row": (times, x.numel())}

    return inputs, _feature_columns


_READERS: dict[type[nn.Module], Callable[[nn.Module], Readers | None]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _batch_norm),
}
