"""Autograd functions that compute the gradient of some runs of a parameter and nothing of the rest.

The forward is the plain layer's, with the whole weight. The backward gathers what belongs to the runs, multiplies once, and divides the
product among the runs, which are leaves of their own: the function takes them as its last arguments only so that autograd knows them.
Where a run is none of a tensor's (a role that is not cut), the tensor itself is the leaf and is treated as in the plain layer.

Runs of weight rows select channels of the output's gradient, runs of columns select channels of the input.

Where gathering costs more than it saves (`is_cheap`), or where torch's kernel would first copy what is multiplied (`_is_product`), other
ways lead to the same gradients.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

Run = tuple[int, int]
"""Start and stop (exclusive) along one dimension."""

Runs = tuple[Run, ...]
"""Ascending, disjoint, not adjacent."""

Grads = tuple[Tensor | None, ...]

_CONVOLVE = (functional.conv1d, functional.conv2d, functional.conv3d)


def gather(x: Tensor, dim: int, runs: Sequence[Run]) -> Tensor:
    """The runs of a dimension side by side; a view where there is only one."""
    parts = [x.narrow(dim, start, stop - start) for start, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def divide(x: Tensor, dim: int, runs: Sequence[Run]) -> tuple[Tensor, ...]:
    """The inverse of `gather`: one part per run."""
    return torch.split(x, [stop - start for start, stop in runs], dim)


class LinearRuns(Function):
    """`functional.linear` that trains runs of the weight along `dim` and of the bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dim: int, weight_runs: Runs, bias_runs: Runs, *_: Tensor
    ) -> Tensor:
        """Saves the input only if a weight gradient is wanted, the weight only if an input gradient is."""
        ctx.dim, ctx.weight_runs, ctx.bias_runs = dim, weight_runs, bias_runs
        learns = bool(weight_runs) or ctx.needs_input_grad[1]
        ctx.save_for_backward(x if learns else None, weight if ctx.needs_input_grad[0] else None)
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        """Gradients in the dtype of `grad`; the engine converts each to the dtype of its leaf."""
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        input_grad = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        weight_grad = rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        bias_grad = rows.sum(0) if ctx.needs_input_grad[2] else None
        chosen = gather(rows, 1, ctx.bias_runs) if ctx.bias_runs else rows
        bias_parts = divide(chosen.sum(0), 0, ctx.bias_runs) if ctx.bias_runs else ()
        if not ctx.weight_runs:
            return (input_grad, weight_grad, bias_grad, None, None, None, *bias_parts)
        columns = x.reshape(-1, x.shape[-1])
        if ctx.dim == 1:
            product = rows.t() @ gather(columns, 1, ctx.weight_runs)
        else:
            product = (chosen if ctx.weight_runs == ctx.bias_runs else gather(rows, 1, ctx.weight_runs)).t() @ columns
        return (input_grad, weight_grad, bias_grad, None, None, None, *divide(product, ctx.dim, ctx.weight_runs), *bias_parts)


Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, dilation, groups."""


class ConvolutionRuns(Function):
    """A batched convolution that trains runs of the weight along `dim` and of the bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        dim: int,
        weight_runs: Runs,
        bias_runs: Runs,
        *_: Tensor,
    ) -> Tensor:
        """Saves the input only if a weight gradient is wanted; the weight also gives the backward its shape and memory format."""
        ctx.geometry, ctx.dim, ctx.weight_runs, ctx.bias_runs = geometry, dim, weight_runs, bias_runs
        learns = bool(weight_runs) or ctx.needs_input_grad[1]
        ctx.save_for_backward(x if learns else None, weight)
        ctx.input_shape = x.shape
        return _CONVOLVE[weight.ndim - 3](x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        """Gradients in the dtype of `grad`; the engine converts each to the dtype of its leaf."""
        x, weight = ctx.saved_tensors
        weight, runs = weight.to(grad.dtype), ctx.weight_runs
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        input_grad = weight_grad = None
        parts: list[Tensor] = []
        if runs and ctx.dim == 0 and _is_product(grad, x, weight, ctx.geometry):
            input_grad, parts = _products(grad, x, weight, runs, wants_input=wants_input)
        else:
            whole = wants_weight or (bool(runs) and ctx.dim == 0 and is_cheap(weight.shape, ctx.geometry[-1]))
            if wants_input or whole:
                like = x if x is not None else grad.new_empty(1).expand(ctx.input_shape)
                input_grad, weight_grad, _ = _convolution_backward(grad, like, weight, ctx.geometry, (wants_input, whole))
            if runs and weight_grad is not None:
                parts = [weight_grad[start:stop].clone() for start, stop in runs]
            elif runs:
                parts = list((_grads_of_columns if ctx.dim == 1 else _grads_of_rows)(grad, x, weight, ctx.geometry, runs))
        summed = [dim for dim in range(grad.ndim) if dim != 1]
        bias_grad = grad.sum(summed) if wants_bias else None
        parts += [grad.narrow(1, start, stop - start).sum(summed) for start, stop in ctx.bias_runs]
        return (input_grad, None if runs else weight_grad, bias_grad, None, None, None, None, *parts)


def is_cheap(shape: Sequence[int], groups: int) -> bool:
    """Whether the whole weight gradient of a convolution costs less than gathering what some rows of it need: in groups, with few taps.

    Args:
        shape: Of the weight.
        groups: Of the channels.
    """
    return groups > 1 and math.prod(shape[1:]) <= 9


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]) -> Grads:
    """Gradients of input and weight, those that are wanted."""
    stride, padding, dilation, groups = geometry
    transposed, output_padding = False, [0] * len(stride)
    options = (stride, padding, dilation, transposed, output_padding, groups, (*wanted, False))
    found: Grads = torch.ops.aten.convolution_backward(grad, x, weight, None, *options)
    return found


def _grads_of_columns(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, runs: Runs) -> Iterator[Tensor]:
    """Column j of the weight reads input channel j of each channel group."""
    groups = geometry[-1]
    chosen = gather(torch.unflatten(x, 1, (groups, -1)), 2, runs).flatten(1, 2)
    product = _convolution_backward(grad, chosen, weight[:, : chosen.shape[1] // groups], geometry, (False, True))[1]
    assert product is not None
    yield from divide(product, 1, runs)


def _grads_of_rows(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, runs: Runs) -> Iterator[Tensor]:
    """Row i of the weight makes output channel i. Channel groups that a run only touches are computed whole."""
    *rest, groups = geometry
    unit = 1 if groups == 1 else weight.shape[0] // groups
    covered = _covering(runs, unit)
    if groups > 1:
        x = gather(x, 1, [(start * weight.shape[1], stop * weight.shape[1]) for start, stop in covered])
        groups = sum(stop - start for start, stop in covered)
    covered_rows = [(start * unit, stop * unit) for start, stop in covered]
    chosen = gather(grad, 1, covered_rows)
    product = _convolution_backward(chosen, x, weight[: chosen.shape[1]], (*rest, groups), (False, True))[1]  # type: ignore[arg-type]
    assert product is not None
    for part, (first, last) in zip(divide(product, 0, covered_rows), covered_rows, strict=True):
        yield from (part[start - first : stop - first] for start, stop in runs if first <= start < last)


def _is_product(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether the gradients are products of matrices that lie in memory as such, but of which torch's kernel would make copies.

    So it is with pointwise convolutions of images in channels last on the CPU where torch does without oneDNN (few examples, one thread).
    """
    stride, padding, dilation, groups = geometry
    shape = weight.shape
    if len(shape) != 4 or shape[2:] != (1, 1) or groups != 1 or stride != (1, 1) or padding != (0, 0) or grad.device.type != "cpu":
        return False
    if not (grad.is_contiguous(memory_format=torch.channels_last) and x.is_contiguous(memory_format=torch.channels_last)):
        return False
    chosen = torch._C._select_conv_backend(x, weight, None, stride, padding, dilation, False, padding, groups)  # noqa: SLF001, FBT003  as inductor asks
    return bool(chosen == torch._C._ConvBackend.Slow2d)  # type: ignore[attr-defined]  # noqa: SLF001


def _products(grad: Tensor, x: Tensor, weight: Tensor, runs: Runs, *, wants_input: bool) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of the input, if it is wanted, and of the runs of rows of a pointwise convolution of images in channels last.

    Matrices are read from memory as they lie there: between the layers of a network, each step of a chain of views costs as much as a
    small product.
    """
    outputs, inputs = weight.shape[:2]
    positions = grad.numel() // outputs
    columns, start_of = x.as_strided((positions, inputs), (inputs, 1)), grad.storage_offset()
    input_grad = None
    if wants_input:
        rows = grad.as_strided((positions, outputs), (outputs, 1))
        input_grad = torch.mm(rows, weight.flatten(1)).as_strided(x.shape, x.stride())
    parts = []
    for start, stop in runs:
        chosen = grad.as_strided((stop - start, positions), (1, outputs), start_of + start)
        parts.append(torch.mm(chosen, columns).view(stop - start, inputs, 1, 1))
    return input_grad, parts


def _covering(runs: Runs, unit: int) -> list[Run]:
    """The runs in whole units, those that then touch each other made one."""
    covered: list[Run] = []
    for start, stop in runs:
        first, last = start // unit, -(-stop // unit)
        if covered and first <= covered[-1][1]:
            covered[-1] = (covered[-1][0], last)
        else:
            covered.append((first, last))
    return covered


class Assemble(Function):
    """The whole tensor for whoever computes with it; of its gradient, each run receives its own part."""

    @staticmethod
    def forward(ctx: Any, full: Tensor, dim: int, runs: Runs, *_: Tensor) -> Tensor:
        """Shares memory and version counter with `full`."""
        ctx.dim, ctx.runs = dim, runs
        return full.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        """Copies, so that the memory of the whole gradient can be freed."""
        return (None, None, None, *(grad.narrow(ctx.dim, start, stop - start).clone() for start, stop in ctx.runs))
