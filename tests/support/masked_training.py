"""Plain training with gradients of frozen entries zeroed and values put back: what freezing has to equal."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, optim

from fat_ray.fisher.groups import Group


class MaskedTraining:
    """Masks of entries and nothing else: no slices, no forms, no hooks.

    Args:
        model: A plain model.
        optimizer: Holds its parameters.
        groups: Of the model.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, groups: list[Group]) -> None:
        self.parameters, self.optimizer, self.groups = dict(model.named_parameters()), optimizer, groups
        self.masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()}

    def mask_of(self, active: NDArray[np.bool_]) -> dict[str, Tensor]:
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        for group, on in zip(self.groups, active, strict=True):
            for member in group.members:
                masks[member.parameter][member.index] = bool(on)
        return masks

    def set_active(self, active: NDArray[np.bool_]) -> None:
        """Entries that freeze lose their state; those that thaw start with new state, and without a gradient in this step."""
        before, self.masks = self.masks, self.mask_of(active)
        for name, parameter in self.parameters.items():
            kept = before[name] & self.masks[name]
            if parameter.grad is not None:
                parameter.grad[~kept] = 0
            if not (before[name].any() and self.masks[name].any()):
                parameter.grad = None  # nothing to step with; and if it was frozen as a whole, it starts like a new parameter
                self.optimizer.state.pop(parameter, None)
                if isinstance(self.optimizer, optim.Adagrad):  # in torch 2.11 it makes none later
                    self.optimizer.state[parameter] = {"step": torch.tensor(0.0), "sum": self.start("sum", parameter)}
                continue
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                    value[~kept] = self.start(key, parameter)[~kept].to(value.dtype)

    def start(self, key: str, parameter: nn.Parameter) -> Tensor:
        if key == "ax":
            return parameter.detach()
        known = {"step_size": "lr", "sum": "initial_accumulator_value"}
        value = self.optimizer.defaults[known[key]] if key in known else 0.0
        return torch.full_like(parameter, value)

    def step(self) -> None:
        kept = {}
        for name, parameter in self.parameters.items():
            if not self.masks[name].any():
                parameter.grad = None
            if parameter.grad is not None:
                parameter.grad[~self.masks[name]] = 0
            kept[name] = parameter.detach().clone()
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter[~self.masks[name]] = kept[name][~self.masks[name]]
