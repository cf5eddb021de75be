"""Carries decisions out: what is frozen does not move, to the bit, whatever the optimizer does.

A tensor whose entries are all frozen leaves autograd and the optimizer: its gradient is neither computed nor communicated nor stored.
A tensor that is frozen in part keeps its gradient; the frozen blocks of the gradient are cleared before clipping, so that only active
entries count, and the frozen blocks of the parameter are put back after the optimizer's step.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fat_ray.fisher.groups import Block, Group
from fat_ray.freeze.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state

Bools = NDArray[np.bool_]


class ActiveEntries:
    """The frozen part of a model.

    Args:
        model: The network, not its DDP wrapper.
        optimizer: Holds the trainable parameters of `model`.
        groups: A partition of the trainable parameters, see `fisher.groups.build_groups`.

    Raises:
        ValueError: The groups are not a partition of the trainable parameters.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, groups: list[Group]) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = optimizer
        self._groups = groups
        self._partial: dict[str, list[tuple[slice, ...]]] = {}
        self.elements = np.array([group.elements for group in groups], np.int64)
        self.active: Bools = np.ones(len(groups), np.bool_)
        _check_partition(self._parameters, groups)

    @property
    def active_elements(self) -> int:
        """Number of entries that may still move."""
        return int(self.elements[self.active].sum())

    def active_layers(self) -> set[str]:
        """Paths of the modules that own an active group."""
        return {group.layer for group, on in zip(self._groups, self.active, strict=True) if on}

    def runs(self) -> dict[str, nn.Parameter]:
        """What the optimizer holds, by the entries it stands for: ``name:dimension:start:stop``."""
        held = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        return {f"{name}:0:0:{p.shape[0] if p.ndim else 1}": p for name, p in self._parameters.items() if id(p) in held}

    def optimizer_state(self) -> OptimizerState:
        """State and options of the optimizer, by `runs`."""
        return optimizer_state(self._optimizer, self.runs())

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Goes on from what `optimizer_state` returned; the same entries must be active.

        Raises:
            ValueError: The optimizer holds other entries.
        """
        load_optimizer_state(self._optimizer, self.runs(), state)

    def freeze(self, chosen: Bools) -> bool:
        """Freezes groups for good.

        Args:
            chosen: Per group, whether to freeze it; all must be active.

        Returns:
            Whether a tensor left autograd, in which case a DDP wrapper must be made anew.

        Raises:
            ValueError: A chosen group is frozen already.
        """
        if (chosen & ~self.active).any():
            raise ValueError(f"groups {np.flatnonzero(chosen & ~self.active).tolist()} are frozen already; the active set only shrinks")
        self.active = self.active & ~chosen
        touched = dict.fromkeys(member.parameter for index in np.flatnonzero(chosen) for member in self._groups[index].members)
        dropped = [name for name in touched if self._refresh(name)]
        self._forget(self._parameters[name] for name in dropped)
        return bool(dropped)

    def _refresh(self, name: str) -> bool:
        """Notes the frozen blocks of a tensor; True when all of it is frozen."""
        states = zip(self._groups, self.active, strict=True)
        blocks = [(member, on) for group, on in states for member in group.members if member.parameter == name]
        parameter = self._parameters[name]
        if not any(on for _, on in blocks):
            self._partial.pop(name, None)
            parameter.requires_grad_(False)  # noqa: FBT003  torch takes it by position
            parameter.grad = None
            return True
        self._partial[name] = [member.index for member, on in blocks if not on]
        return False

    def _forget(self, parameters: Iterable[Tensor]) -> None:
        """Takes tensors and their state out of the optimizer."""
        gone = {id(parameter) for parameter in parameters}
        for group in self._optimizer.param_groups:
            kept = []
            for parameter in group["params"]:
                if id(parameter) in gone:
                    self._optimizer.state.pop(parameter, None)
                else:
                    kept.append(parameter)
            group["params"] = kept

    def mask_gradients(self) -> None:
        """Clears the gradients of frozen blocks; call after backward and before clipping."""
        for name, frozen in self._partial.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                for block in frozen:
                    gradient[block] = 0

    @contextmanager
    def protect(self) -> Iterator[None]:
        """Wraps the optimizer's step: frozen blocks are the same before and after, to the bit."""
        with torch.no_grad():
            partial = [(self._parameters[name], block) for name, frozen in self._partial.items() for block in frozen]
            kept = [(parameter, block, parameter[block].clone()) for parameter, block in partial]
        yield
        with torch.no_grad():
            for parameter, block, values in kept:
                parameter[block] = values


def _check_partition(parameters: dict[str, nn.Parameter], groups: list[Group]) -> None:
    covered: dict[str, list[Block]] = {name: [] for name in parameters}
    for group in groups:
        for member in group.members:
            if member.parameter not in covered:
                raise ValueError(f"group {group.name} holds {member.parameter}, which is not a trainable parameter of the model")
            covered[member.parameter].append(member)
    for name, blocks in covered.items():
        runs = sorted((block.start, block.stop) for block in blocks)
        dims = {block.dim for block in blocks}
        extent = parameters[name].shape[dims.pop()] if len(dims) == 1 and parameters[name].ndim else 1
        edges = [edge for run in runs for edge in run]
        if dims or edges[:1] != [0] or edges[-1:] != [extent] or edges[1:-1:2] != edges[2:-1:2]:
            raise ValueError(f"the groups do not cover the {extent} rows or columns of {name} exactly once: {runs}")
