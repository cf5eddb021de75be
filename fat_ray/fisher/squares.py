"""Sums of squares of activations and gradients, without an array of all squares.

Such an array is as large as the activation: writing it costs more than reading the activation does. `numpy.einsum` only reads. It adds in
float32 from first to last, so no more than some thousand squares are given to it at a time, and its sums are added in float64. On other
devices than the CPU, and for tensors that are more than a tensor, torch squares and sums.

These functions run between the kernels of a training step, which leave nothing of Python in the caches: there, a line costs ten times what
it costs in a loop. So they are short, and what does not depend on values is found beforehand.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROWS = 8192
"""Squares that are added in float32, one after the other."""


def over_examples(x: Tensor) -> Tensor:
    """`(x * x).sum(0)`, float32: (N, ...) to (...)."""
    if not _is_plain(x):
        return (x * x).sum(0)
    values, dims = x.numpy(), list(range(x.ndim))
    return torch.from_numpy(np.einsum(values, dims, values, dims, dims[1:]))


def per_feature(x: Tensor) -> Tensor:
    """The sum over all but the last dimension: (..., C) to (C,)."""
    if x.ndim > 2 and not x.is_contiguous() and x.movedim(-1, 1).is_contiguous():
        return _of_middle(x.movedim(-1, 1).flatten(2))
    return _of_last(x.reshape(-1, x.shape[-1]))


def per_channel(x: Tensor) -> Tensor:
    """The sum over all but dimension 1: (N, C, ...) to (C,)."""
    if x.ndim > 2 and x.is_contiguous():
        return _of_middle(x.flatten(2))
    return _of_last(x.movedim(1, -1).reshape(-1, x.shape[1]))


def _of_last(rows: Tensor) -> Tensor:
    """(N, C) to (C,)."""
    if not _is_plain(rows):
        return (rows * rows).sum(0)
    values = rows.numpy()
    if len(values) <= _ROWS:
        return torch.from_numpy(np.einsum("ni,ni->i", values, values))
    parts = [np.einsum("ni,ni->i", part, part) for part in np.split(values, range(_ROWS, len(values), _ROWS))]
    return torch.from_numpy(np.sum(parts, axis=0, dtype=np.float64))


def _of_middle(x: Tensor) -> Tensor:
    """(N, C, L) to (C,)."""
    if not _is_plain(x):
        return (x * x).sum((0, 2))
    values = x.numpy()
    return torch.from_numpy(np.einsum("ncl,ncl->nc", values, values).sum(0, dtype=np.float64))


def _is_plain(x: Tensor) -> bool:
    return x.is_cpu and type(x) is Tensor


def under_taps(x: Tensor, axes: Sequence["Axis"]) -> tuple[Tensor, int]:
    """The sum of the squares that each tap of a kernel meets, over examples and positions.

    Args:
        x: (N, C, *spatial).
        axes: How the kernel moves along each spatial dimension.

    Returns:
        (C, *kernel), and the number of positions.
    """
    if all(axis == _POINT for axis in axes):  # every value is a patch of its own
        return per_channel(x).reshape(-1, *(1 for _ in axes)), x[0, 0].numel()
    squares, num_positions = over_examples(x).movedim(0, -1).reshape(1, -1), 1  # channels last: sums run along them
    for axis, size in zip(axes, x.shape[2:], strict=True):
        met, positions = _times_met(axis, size)
        summed = _weighted_sums(met, squares.reshape(len(squares), size, -1))
        squares = summed.reshape(-1, summed.shape[-1])  # (taps so far, dimensions left * channels)
        num_positions *= positions
    return squares.t().reshape(-1, *(axis.kernel for axis in axes)), num_positions


def _weighted_sums(weights: NDArray[np.float32], x: Tensor) -> Tensor:
    """(K, S) and (T, S, R) to (T, K, R). Sums, no matrix products: whoever counts operations shall see none of a model's kind."""
    if _is_plain(x):
        return torch.from_numpy(np.einsum("ks,tsr->tkr", weights, x.numpy()))
    rows = torch.from_numpy(weights)[:, :, None].to(x.device)
    return torch.stack([(x * row).sum(1) for row in rows], dim=1)


class Axis(NamedTuple):
    """One dimension of a convolution: its kernel, stride and dilation, what is padded before and after, and how."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    mode: str = "zeros"


_POINT = Axis(1)


@functools.lru_cache(maxsize=1024)
def _times_met(axis: Axis, size: int) -> tuple[NDArray[np.float32], int]:
    """How often each tap meets each place of a dimension, (kernel, size), and the number of positions."""
    positions = (size + axis.before + axis.after - axis.dilation * (axis.kernel - 1) - 1) // axis.stride + 1
    taps = np.arange(axis.kernel)[:, None]
    places = taps * axis.dilation + axis.stride * np.arange(positions) - axis.before
    inside = (places >= 0) & (places < size)
    match axis.mode:
        case "reflect":
            places = size - 1 - np.abs(size - 1 - np.abs(places))
        case "replicate":
            places = np.clip(places, 0, size - 1)
        case "circular":
            places = places % size
    met = np.zeros((axis.kernel, size), np.float32)
    seen = inside if axis.mode == "zeros" else np.ones_like(inside)
    np.add.at(met, (np.broadcast_to(taps, places.shape)[seen], places[seen]), 1.0)
    return met, positions
