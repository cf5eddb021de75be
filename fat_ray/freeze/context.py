"""What a policy may know before training, and what it wants done to the model before that is cut into groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fat_ray.errors import PolicyError
from fat_ray.fisher.groups import Group
from fat_ray.freeze.lora import add_adapters
from fat_ray.freeze.policy import Ints
from fat_ray.spec.run import FreezeSpec, GroupSpec

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class PolicyContext:
    """What a policy may know of the model and the run.

    Attributes:
        groups: All groups, in network order: the order in which modules were registered.
        steps: Optimizer steps of the whole run; None where nobody knows.
        seed: Seed of the run.
        norms: Paths of the layers that normalise.
        head: Paths of the modules that are the head, see `head_of`.
        follow: For random_matched, the recorded schedule: (step, active elements after the event).
        bury_dead: Whether groups whose Fisher is zero by decree freeze at step 0, as released.
        options: `freeze.options` of the specification.
    """

    groups: tuple[Group, ...]
    steps: int | None = None
    seed: int = 0
    norms: frozenset[str] = frozenset()
    head: tuple[str, ...] = ()
    follow: Sequence[tuple[int, int]] | None = None
    bury_dead: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers that own groups, in network order."""
        return tuple(dict.fromkeys(group.layer for group in self.groups))

    @cached_property
    def depth(self) -> Ints:
        """Per group, the position of its layer in `layers`."""
        position = {layer: index for index, layer in enumerate(self.layers)}
        return np.array([position[group.layer] for group in self.groups], np.int64)

    @cached_property
    def elements(self) -> Ints:
        """Per group, its number of entries."""
        return np.array([group.elements for group in self.groups], np.int64)

    def in_head(self, layer: str) -> bool:
        """Whether a layer belongs to the head."""
        return is_under(layer, self.head)


def describe(
    model: nn.Module,
    groups: Sequence[Group],
    spec: FreezeSpec,
    *,
    steps: int | None = None,
    seed: int = 0,
    follow: Sequence[tuple[int, int]] | None = None,
    bury_dead: bool = False,
) -> PolicyContext:
    """What policies may know of a model that `prepare_model` returned.

    Args:
        model: The network, not its DDP wrapper.
        groups: Its groups.
        spec: Who decides.
        steps: See `PolicyContext`, as the rest.
        seed: Seed of the run.
        follow: A recorded schedule.
        bury_dead: Whether groups without Fisher freeze at step 0.

    Raises:
        PolicyError: `freeze.head` names no module with trainable parameters.
    """
    norms = frozenset(layer for layer in {group.layer for group in groups} if _is_norm(model.get_submodule(layer)))
    head = head_of(model, spec)
    return PolicyContext(tuple(groups), steps, seed, norms, head, follow, bury_dead, spec.options)


def prepare_model(model: nn.Module, spec: FreezeSpec, seed: int) -> nn.Module:
    """The model as the policy wants it, to be called before groups are built; all policies but ``lora`` leave it as it is.

    Args:
        model: The network, on any device. ``lora`` changes it: all that was trainable stays so, beside the adapters.
        spec: Who decides.
        seed: Of the adapters' start, which is equal on all ranks; torch's global generator stays untouched.

    Raises:
        PolicyError: peft is not installed, or a layer that `freeze.targets` names cannot have an adapter.
    """
    if spec.policy != "lora":
        return model
    head = head_of(model, spec) if spec.train_head else ()
    return add_adapters(model, spec, seed, outside=lambda layer: not is_under(layer, head))


def group_spec(spec: FreezeSpec, groups: GroupSpec) -> GroupSpec:
    """How the model is cut: as the run says, but ``bitfit`` must be able to freeze a weight without its bias."""
    return groups.model_copy(update={"bias": "apart"}) if spec.policy == "bitfit" else groups


def head_of(model: nn.Module, spec: FreezeSpec) -> tuple[str, ...]:
    """Paths of the modules that are the head.

    `freeze.head` if it is given, else the model's attribute `head_modules` (a sequence of paths), else the last child, in the order of
    registration, that owns trainable parameters; a module with a single such child and no parameters of its own is looked through.

    Raises:
        PolicyError: A path names no module that owns trainable parameters.
    """
    declared = spec.head if spec.head is not None else getattr(model, "head_modules", None)
    if declared is None:
        return (_last_child(model),)
    owners = [name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad]
    for path in declared:
        if not any(is_under(owner, (path,)) for owner in owners):
            source = "freeze.head" if spec.head is not None else "the model's head_modules"
            known = ", ".join(name for name, child in model.named_children() if _is_trainable(child))
            raise PolicyError(f"{source}: {path!r} is no module with trainable parameters; modules at the top: {known}")
    return tuple(declared)


def is_under(layer: str, paths: Sequence[str]) -> bool:
    """Whether a module is one of the paths or lies below one."""
    return any(layer == path or layer.startswith(f"{path}.") for path in paths)


def _last_child(model: nn.Module) -> str:
    path, module = "", model
    while True:
        children = [(name, child) for name, child in module.named_children() if _is_trainable(child)]
        if not children:
            return path
        own = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        name, last = children[-1]
        path = f"{path}.{name}".lstrip(".")
        if len(children) > 1 or own:
            return path
        module = last


def _is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _is_norm(module: nn.Module) -> bool:
    """A norm of torch, or a module that is called one and owns vectors only."""
    named = any("norm" in base.__name__.lower() for base in type(module).__mro__)
    return isinstance(module, _NORMS) or (named and all(parameter.ndim <= 1 for parameter in module.parameters(recurse=False)))
