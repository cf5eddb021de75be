"""The state of an optimizer by name: to which entries of which parameter each tensor of it belongs, in whatever order it holds them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer of torch.optim remembers.

    Attributes:
        tensors: ``<run>/<field>`` to a tensor, such as the first moment of a parameter.
        plain: JSON types: per run the fields that are no tensors, and per parameter group its options with the runs it holds.
    """

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


def optimizer_state(optimizer: torch.optim.Optimizer, runs: Mapping[str, nn.Parameter]) -> OptimizerState:
    """The state of an optimizer.

    Args:
        optimizer: Any of torch.optim with per-element or scalar state.
        runs: Name of each parameter that the optimizer holds.
    """
    names = {id(parameter): run for run, parameter in runs.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    fields: dict[str, dict[str, Any]] = {}
    for index, state in packed["state"].items():
        tensors |= {f"{order[index]}/{field}": value for field, value in state.items() if isinstance(value, Tensor)}
        fields[order[index]] = {field: value for field, value in state.items() if not isinstance(value, Tensor)}
    groups = [{**group, "params": [order[index] for index in group["params"]]} for group in packed["param_groups"]]
    return OptimizerState(tensors, {"fields": fields, "groups": groups})


def load_optimizer_state(optimizer: torch.optim.Optimizer, runs: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
    """Brings an optimizer that holds the same runs to a state.

    Raises:
        ValueError: It holds others.
    """
    groups = state.plain["groups"]
    index = {run: position for position, run in enumerate(run for group in groups for run in group["params"])}
    if index.keys() != runs.keys() or len(groups) != len(optimizer.param_groups):
        different = sorted(index.keys() ^ runs.keys()) or [f"{len(groups)} parameter groups"]
        raise ValueError(f"the optimizer does not hold what the saved one held: {', '.join(different[:5])}")
    packed_groups = []
    for own, saved in zip(optimizer.param_groups, groups, strict=True):
        own["params"] = [runs[run] for run in saved["params"]]
        options = {name: tuple(value) if isinstance(own.get(name), tuple) else value for name, value in saved.items()}
        packed_groups.append({**options, "params": [index[run] for run in saved["params"]]})
    packed: dict[int, dict[str, Any]] = {index[run]: dict(fields) for run, fields in state.plain["fields"].items()}
    for name, tensor in state.tensors.items():
        run, _, field = name.rpartition("/")
        packed.setdefault(index[run], {})[field] = _laid_out_as(runs[run], tensor)
    optimizer.load_state_dict({"state": packed, "param_groups": packed_groups})


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with the strides of its parameter, as the optimizer made it."""
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if tensor.shape == parameter.shape and tensor.ndim else tensor
