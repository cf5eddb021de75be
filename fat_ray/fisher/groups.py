"""Groups: which parameter entries freeze together. The groups of a model partition its trainable parameters exactly."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from fat_ray.errors import InputError
from fat_ray.events import GroupInfo
from fat_ray.spec.run import GroupSpec


@dataclass(frozen=True)
class Block:
    """Entries `start` to `stop` (exclusive) of a parameter along one dimension, all of the others; a scalar has one entry.

    Attributes:
        parameter: Name in `model.named_parameters()`.
        role: Name within its module, such as ``weight``.
        shape: Shape of the whole parameter.
        dim: 0 for rows, 1 for columns.
    """

    parameter: str
    role: str
    shape: tuple[int, ...]
    dim: int
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Number of entries."""
        return (self.stop - self.start) * math.prod(self.shape[: self.dim]) * math.prod(self.shape[self.dim + 1 :])

    @property
    def index(self) -> tuple[slice, ...]:
        """Indexes the entries in a tensor or array of `shape`."""
        return (*(slice(None),) * self.dim, slice(self.start, self.stop)) if self.shape else ()


@dataclass(frozen=True)
class Group:
    """Entries of one module that freeze together.

    Attributes:
        name: Unique in the model: the module's path, with the tensor where groups hold single tensors, and the rows or columns.
        layer: Path of the module; empty for the model itself.
        kind: Class name of the module.
        members: The block of each tensor, weight first.
    """

    name: str
    layer: str
    kind: str
    members: tuple[Block, ...]

    @functools.cached_property
    def elements(self) -> int:
        """Number of entries over all members."""
        return sum(member.elements for member in self.members)

    def info(self) -> GroupInfo:
        """The group as records describe it."""
        return GroupInfo(self.name, self.layer, self.kind, self.elements)


def build_groups(model: nn.Module, spec: GroupSpec) -> list[Group]:
    """Cuts all trainable parameters into groups, in the order of `model.named_modules()`.

    A weight of two or more dimensions is cut into blocks of rows or columns. With `bias: with_rows`, row blocks carry the bias entries
    of the same rows, and the vectors of a norm layer form one group. A parameter shared by several modules belongs to the first.

    Args:
        model: The network.
        spec: How to cut.

    Raises:
        InputError: A parameter has no shape yet.
    """
    lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise InputError(f"{lazy} has no shape before the first forward (a lazy module): let the model see one batch first")
    groups: list[Group] = []
    seen: set[int] = set()
    for layer, module in model.named_modules():
        own = {role: p for role, p in module.named_parameters(recurse=False) if p.requires_grad and id(p) not in seen}
        seen.update(id(parameter) for parameter in own.values())
        units = list(_units(module, own, spec))
        for roles in units:
            groups += _cut(layer, module, {role: own[role] for role in roles}, spec, alone=len(units) == 1)
    return groups


def _units(module: nn.Module, own: dict[str, nn.Parameter], spec: GroupSpec) -> Iterator[tuple[str, ...]]:
    """The tensors of a module that are cut together: weights with their biases, all vectors of a norm, else each by itself."""
    if spec.bias == "apart" or spec.along == "columns":
        yield from ((role,) for role in own)
        return
    paired = {}
    for role, parameter in own.items():
        bias = role.replace("weight", "bias")
        if parameter.ndim > 1 and bias != role and bias in own and _rows_match(module, parameter, own[bias]):
            paired[bias] = role
    for role, parameter in own.items():
        if parameter.ndim > 1:
            yield (role, *(bias for bias, weight in paired.items() if weight == role))
    vectors = tuple(role for role, parameter in own.items() if parameter.ndim <= 1 and role not in paired)
    if vectors and set(vectors) <= {"weight", "bias"}:
        yield vectors
    else:
        yield from ((role,) for role in vectors)


def _rows_match(module: nn.Module, weight: nn.Parameter, bias: nn.Parameter) -> bool:
    """Whether bias entry i belongs to row i of the weight; transposed convolutions have their outputs in dimension 1."""
    return not isinstance(module, _ConvTransposeNd) and bias.ndim == 1 and bias.shape[0] == weight.shape[0]


def _cut(layer: str, module: nn.Module, tensors: dict[str, nn.Parameter], spec: GroupSpec, *, alone: bool) -> Iterator[Group]:
    role, first = next(iter(tensors.items()))
    dim = 1 if spec.along == "columns" and first.ndim > 1 else 0
    base = layer if alone and layer else f"{layer}.{role}".lstrip(".")
    edges = _edges(layer, first, dim, spec)
    for start, stop in itertools.pairwise(edges):
        members = tuple(Block(f"{layer}.{name}".lstrip("."), name, tuple(t.shape), dim, start, stop) for name, t in tensors.items())
        where = f"[{start}:{stop}]" if dim == 0 else f"[:, {start}:{stop}]"
        yield Group(base if len(edges) == 2 else base + where, layer, type(module).__name__, members)


def _edges(layer: str, tensor: nn.Parameter, dim: int, spec: GroupSpec) -> list[int]:
    """Where the blocks begin and end: `floor(linspace(0, n, k + 1))`, within query, key and value each if they are split."""
    extent = tensor.shape[dim] if tensor.ndim else 1
    parts = 3 if spec.split_qkv and spec.along == "rows" and layer.endswith(".attn.qkv") and extent % 3 == 0 else 1
    size = extent // parts
    whole = tensor.ndim == 0 or (tensor.ndim == 1 and (spec.along == "columns" or spec.bias == "with_rows"))
    num_blocks = 1 if whole else max(1, min(spec.blocks, size // spec.min_block))
    inner = np.floor(np.linspace(0, size, num_blocks + 1)).astype(int)
    return sorted({int(part * size + edge) for part in range(parts) for edge in inner})
