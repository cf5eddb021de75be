"""Groups: which parameter entries freeze together. The groups of a model partition its trainable parameters exactly."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from fat_ray.events import GroupInfo


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` (exclusive) of a parameter, along dimension 0; a scalar has one row.

    Attributes:
        parameter: Name in `model.named_parameters()`.
        role: Name within its module, such as ``weight``.
        columns: Entries per row.
    """

    parameter: str
    role: str
    start: int
    stop: int
    columns: int

    @property
    def elements(self) -> int:
        """Number of entries."""
        return (self.stop - self.start) * self.columns


@dataclass(frozen=True)
class Group:
    """Entries of one module that freeze together.

    Attributes:
        name: Unique in the model: the module's path with the rows, if the module is cut.
        layer: Path of the module; empty for the model itself.
        kind: Class name of the module.
        members: The rows of each tensor, weight first.
    """

    name: str
    layer: str
    kind: str
    members: tuple[Rows, ...]

    @property
    def elements(self) -> int:
        """Number of entries over all members."""
        return sum(member.elements for member in self.members)

    def info(self) -> GroupInfo:
        """The group as records describe it."""
        return GroupInfo(self.name, self.layer, self.kind, self.elements)


def build_groups(model: nn.Module, blocks: int, min_block_rows: int) -> list[Group]:
    """Cuts all trainable parameters into groups, in the order of `model.named_modules()`.

    A weight of two or more dimensions is cut into blocks of rows, each with the bias entries of the same rows; the vectors of a norm
    layer form one group; any other parameter is cut alone. A parameter shared by several modules belongs to the first.

    Args:
        model: The network.
        blocks: Row blocks k per tensor.
        min_block_rows: Fewer blocks are made rather than blocks of fewer rows.
    """
    groups: list[Group] = []
    seen: set[int] = set()
    for layer, module in model.named_modules():
        own = {role: p for role, p in module.named_parameters(recurse=False) if p.requires_grad and id(p) not in seen}
        seen.update(id(parameter) for parameter in own.values())
        units = list(_units(module, own))
        for roles in units:
            groups += _cut(layer, module, {role: own[role] for role in roles}, blocks, min_block_rows, alone=len(units) == 1)
    return groups


def _units(module: nn.Module, own: dict[str, nn.Parameter]) -> Iterator[tuple[str, ...]]:
    """The tensors of a module that are cut together: weights with their biases, all vectors, then what is left."""
    paired = {}
    for role, parameter in own.items():
        bias = role.replace("weight", "bias")
        if parameter.ndim > 1 and bias != role and bias in own and _rows_match(module, parameter, own[bias]):
            paired[bias] = role
    vectors = [role for role, parameter in own.items() if parameter.ndim <= 1 and role not in paired]
    for role, parameter in own.items():
        if parameter.ndim > 1:
            yield (role, *(bias for bias, weight in paired.items() if weight == role))
    if {"weight", "bias"} >= set(vectors):
        yield from [tuple(vectors)] if vectors else []
    else:
        yield from ((role,) for role in vectors)


def _rows_match(module: nn.Module, weight: nn.Parameter, bias: nn.Parameter) -> bool:
    """Whether bias entry i belongs to row i of the weight; transposed convolutions have their outputs in dimension 1."""
    return not isinstance(module, _ConvTransposeNd) and bias.ndim == 1 and bias.shape[0] == weight.shape[0]


def _cut(layer: str, module: nn.Module, tensors: dict[str, nn.Parameter], blocks: int, min_rows: int, *, alone: bool) -> Iterator[Group]:
    first_role, first = next(iter(tensors.items()))
    num_rows = first.shape[0] if first.ndim else 1
    num_blocks = max(1, min(blocks, num_rows // min_rows)) if first.ndim > 1 else 1
    edges = np.floor(np.linspace(0, num_rows, num_blocks + 1)).astype(int).tolist()
    base = layer if alone and layer else f"{layer}.{first_role}".lstrip(".")
    for start, stop in itertools.pairwise(edges):
        members = tuple(_rows(layer, role, tensor, start, stop) for role, tensor in tensors.items())
        yield Group(base if num_blocks == 1 else f"{base}[{start}:{stop}]", layer, type(module).__name__, members)


def _rows(layer: str, role: str, tensor: nn.Parameter, start: int, stop: int) -> Rows:
    return Rows(f"{layer}.{role}".lstrip("."), role, start, stop, math.prod(tensor.shape[1:]))
