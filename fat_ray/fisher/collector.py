"""Collects the sums of factors during one forward and backward. Hooks exist only while armed: an idle step costs nothing."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fat_ray.fisher.factors import Formulas, Part, Parts
from fat_ray.fisher.groups import Group

Key = tuple[str, str, int]
"""(layer, part of its factors, half of the batch)."""

Sums = dict[Key, Part]


@dataclass(frozen=True)
class Share:
    """Which part of the global batch a backward covers. Ranks take turns: rank r of R holds the positions r, r + R, r + 2R and so on.

    Attributes:
        local: Examples of this rank's part of the global batch, over all its micro-batches.
        rank: This rank.
        world_size: R.
        first: Examples of this rank in the micro-batches before this one.
        size: Examples of this micro-batch; None: all.
        backward_over: Number of examples over which the backpropagated loss is a mean, gradient accumulation included; None: `local`.
        loss_scale: Factor on the loss for half precision.
    """

    local: int
    rank: int = 0
    world_size: int = 1
    first: int = 0
    size: int | None = None
    backward_over: int | None = None
    loss_scale: float = 1.0

    @property
    def examples(self) -> int:
        """Examples of this micro-batch."""
        return self.local if self.size is None else self.size

    @property
    def boundary(self) -> float:
        """The fraction of this micro-batch's examples that lie in the first half of the *global* batch, however it is spread."""
        split = math.ceil(self.local / 2 - self.rank / self.world_size)
        return min(max(split - self.first, 0), self.examples) / self.examples

    def scale(self, *, example_gradients: bool) -> float:
        """Factor that makes output gradients those of each example's own loss, or of the mean loss over the global batch."""
        per_example = (self.local if self.backward_over is None else self.backward_over) / self.loss_scale
        return per_example if example_gradients else per_example / (self.local * self.world_size)


class Collector:
    """Watches the layers of a model that have factors.

    A layer that is called several times adds up over its calls. Only calls count whose outputs receive a gradient: forwards without
    gradients, outputs that the loss does not use, and what activation checkpointing computes twice leave no trace, nor does a model in
    eval mode.

    Args:
        model: The network, not its DDP wrapper.
        groups: Groups of the model; layers without a group are never watched.
        formulas: Which layers have factors, and which.
        halves: Whether to keep the two halves of the global batch apart.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], formulas: Formulas, *, halves: bool = False) -> None:
        self._model, self._formulas, self._halves = model, formulas, halves
        self.layers = covered_layers(model, groups, formulas)
        self._readers = {layer: formulas.readers(module) for layer, module in self.layers.items()}
        self._handles: list[RemovableHandle] = []
        self._read: list[tuple[str, int, float, Parts]] = []
        self._sums: Sums = {}

    def arm(self, layers: Collection[str], share: Share) -> None:
        """Watches these layers until `take`; call it again before each micro-batch.

        Args:
            layers: Paths of the layers with active groups; those without factors are ignored.
            share: What the coming backward covers.
        """
        self._disarm()
        self._add()
        step_eagerly(on=True)
        for layer in self.layers.keys() & set(layers):
            self._handles.append(self.layers[layer].register_forward_hook(self._watch(layer, share), with_kwargs=True))

    def _watch(self, layer: str, share: Share) -> Any:
        readers = self._readers[layer]
        assert readers is not None
        read_inputs, read_gradients = readers
        squared = self._formulas.example_gradients
        scale = share.scale(example_gradients=squared)
        # scaling the sums of squares saves a pass over the gradient
        weight, factor = (scale**2, 1.0) if squared else (1.0, scale)

        def forward_hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if not (output.requires_grad and self._model.training):
                return
            x = (args[0] if args else next(iter(kwargs.values()))).detach()
            x = x.float() if x.is_floating_point() else x
            seen = [(half, read_inputs(part)) for half, part in self._divided(x, share)]

            def gradient_hook(gradient: Tensor) -> None:
                s = gradient.detach().float()
                for half, parts in seen:
                    self._read.append((layer, half, 1.0, parts))
                for half, part in self._divided(s if factor == 1 else s * factor, share):
                    self._read.append((layer, half, weight, read_gradients(part)))

            output.register_hook(gradient_hook)  # type: ignore[no-untyped-call]

        return forward_hook

    def _divided(self, values: Tensor, share: Share) -> Iterable[tuple[int, Tensor]]:
        """The values of each half of the batch, without a half of which there is none."""
        if not self._halves:
            return ((1, values),)
        if share.boundary in (0, 1):
            return ((int(share.boundary == 0), values),)
        axis = _axis_of_examples(values, share.examples)
        if axis is None:
            return ((0, values), (1, values))
        split = round(values.shape[axis] * share.boundary)
        return ((0, values.narrow(axis, 0, split)), (1, values.narrow(axis, split, values.shape[axis] - split)))

    def _add(self) -> None:
        """Adds up what hooks have read, so that they need not."""
        for layer, half, weight, parts in self._read:
            for part, (total, count) in parts.items():
                weighted = total if weight == 1 else total * weight
                before = self._sums.get((layer, part, half))
                self._sums[layer, part, half] = (weighted, count) if before is None else (before[0] + weighted, before[1] + count)
        self._read.clear()

    def take(self) -> Sums:
        """What was collected since the first `arm`: complete layers only, in a fixed order, both halves of each; disarms."""
        self._disarm()
        self._add()
        step_eagerly(on=False)
        sums, self._sums = self._sums, {}
        seen: dict[str, set[str]] = {}
        for layer, part, _ in sums:
            seen.setdefault(layer, set()).add(part)
        halves = (0, 1) if self._halves else (1,)
        keys = [(layer, part, half) for layer in self.layers if layer in seen for part in sorted(seen[layer]) for half in halves]
        return {key: sums[key] if key in sums else _nothing(sums, key) for key in keys}

    def _disarm(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _axis_of_examples(values: Tensor, examples: int) -> int | None:
    """The dimension along which the halves of a batch lie: the first; the second where only that is as long as there are examples.

    None where a layer is called once for all examples, as position embeddings are: its values count in both halves.
    """
    if values.ndim > 2 and values.shape[0] % examples and values.shape[1] == examples:
        return 1
    return 0 if values.shape[0] >= examples else None


def _nothing(sums: Sums, key: Key) -> Part:
    """A half of which this rank holds no example."""
    layer, part, half = key
    return torch.zeros_like(sums[layer, part, 1 - half][0]), 0


def covered_layers(model: nn.Module, groups: Iterable[Group], formulas: Formulas) -> dict[str, nn.Module]:
    """The layers whose Fisher comes from factors.

    Left out are layers whose weight another module uses too (tied weights), what MultiheadAttention owns, whose weights are used without
    a call of their module, and layers that make their weight from other parameters (weight_norm, pruning): hooks would see a part of the
    truth. Their parameters count as without factors.
    """
    modules = dict(model.named_modules())
    uses: dict[int, int] = {}
    for module in modules.values():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    called_by_none = {id(child) for module in modules.values() if isinstance(module, nn.MultiheadAttention) for child in module.modules()}
    return {
        layer: module
        for layer in dict.fromkeys(group.layer for group in groups)
        if formulas.readers(module := modules[layer]) is not None
        and id(module) not in called_by_none
        and all(uses[id(p)] == 1 and role in ("weight", "bias") for role, p in module.named_parameters(recurse=False))
    }


def step_eagerly(*, on: bool) -> None:
    """A compiled model misses hooks that were registered after it was compiled: while they are there, it has to run as written."""
    torch.compiler.set_stance("force_eager" if on else "default")
