"""How a tensor is held while some of its entries are frozen: free, sliced, masked or frozen."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor

from fat_ray.errors import InputError
from fat_ray.fisher.groups import Block, Group
from fat_ray.freeze.sliced import Cut, is_sliceable
from fat_ray.freeze.slicing_rule import worth_slicing

Bools = NDArray[np.bool_]
Form = Literal["free", "sliced", "masked", "frozen"]
"""free: all of it is active; sliced: its active runs are parameters of their own; masked: a part is active, but the optimizer sees the
whole; frozen: nothing is, and neither autograd nor the optimizer sees it."""

Run = tuple[int, int]


@dataclass(frozen=True)
class GroupedTensor:
    """A trainable tensor of the model with the groups that its entries belong to.

    Attributes:
        name: In `model.named_parameters()`.
        role: Its name within its module.
        module: Who owns it.
        full: The whole tensor.
        dim: The dimension along which groups divide it.
        blocks: (start, stop, number of the group), ascending.
        shared: Whether several modules use it.
    """

    name: str
    role: str
    module: nn.Module
    full: nn.Parameter
    dim: int
    blocks: tuple[tuple[int, int, int], ...]
    shared: bool

    @property
    def whole(self) -> Run:
        """All of it along `dim`."""
        return 0, self.blocks[-1][1]

    def runs(self, chosen: Bools) -> tuple[Run, ...]:
        """The chosen entries, neighbouring blocks merged.

        Args:
            chosen: Per group.
        """
        merged: list[Run] = []
        for start, stop, group in self.blocks:
            if chosen[group]:
                joins = merged and merged[-1][1] == start
                merged[-1:] = [(merged[-1][0], stop)] if joins else [*merged[-1:], (start, stop)]
        return tuple(merged)

    def index(self, run: Run) -> tuple[slice, ...]:
        """Indexes the entries of a run in a tensor of this shape."""
        return (*(slice(None),) * self.dim, slice(*run)) if self.full.ndim else ()

    def form(self, active: Bools, *, divided: bool, positions: int | None) -> Form:
        """How to hold it.

        Args:
            active: Per group.
            divided: Whether the optimizer can hold it in runs.
            positions: How often a step uses each entry, see `slicing_rule`.
        """
        runs = self.runs(active)
        if not runs or runs == (self.whole,):
            return "free" if runs else "frozen"
        if self.shared or not divided or not is_sliceable(self.module, self.role):
            return "masked"
        return "sliced" if worth_slicing(self.module, self.role, Cut(self.dim, runs), positions) else "masked"


def grouped_tensors(model: nn.Module, groups: list[Group]) -> dict[str, GroupedTensor]:
    """The trainable tensors of a model by name, in network order.

    Args:
        model: The network.
        groups: A partition of its trainable parameters.

    Raises:
        InputError: There are none, or a group divides a tensor that is sharded over ranks.
        ValueError: The groups are not a partition of the trainable parameters.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise InputError("the model has no trainable parameters: set requires_grad = True on those that shall be trained")
    covered: dict[str, list[tuple[Block, int]]] = {name: [] for name in parameters}
    for index, group in enumerate(groups):
        for member in group.members:
            if member.parameter not in covered:
                raise ValueError(f"group {group.name} holds {member.parameter}, which is not a trainable parameter of the model")
            covered[member.parameter].append((member, index))
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())  # noqa: SLF001  shared ones too
    tensors = {}
    for name, members in covered.items():
        _check_partition(name, parameters[name], [member for member, _ in members])
        member = members[0][0]
        blocks = sorted((block.start, block.stop, index) for block, index in members)
        path = name.rpartition(".")[0]
        shared = owners[id(parameters[name])] > 1
        tensors[name] = GroupedTensor(name, member.role, model.get_submodule(path), parameters[name], member.dim, tuple(blocks), shared)
    return tensors


def _check_partition(name: str, parameter: nn.Parameter, blocks: list[Block]) -> None:
    runs = sorted((block.start, block.stop) for block in blocks)
    dims = {block.dim for block in blocks}
    extent = parameter.shape[min(dims)] if dims and parameter.ndim else 1
    edges = [edge for run in runs for edge in run]
    if len(dims) != 1 or edges[:1] != [0] or edges[-1:] != [extent] or edges[1:-1:2] != edges[2:-1:2]:
        raise ValueError(f"the groups do not cover the {extent} rows or columns of {name} exactly once: {runs}")
    if len(blocks) > 1 and isinstance(parameter, DTensor):
        raise InputError(
            f"{name} is sharded over ranks (fully_shard) and can only freeze as a whole, but is divided into {len(blocks)} groups: "
            "set fisher.groups.blocks = 1"
        )
