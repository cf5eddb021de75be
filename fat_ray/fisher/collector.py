"""Collects the sums of factors during one forward and backward. Hooks exist only while armed: an idle step costs nothing."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fat_ray.fisher.factors import Formulas, Part
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

    A layer that is called several times adds up over its calls, as does a layer that activation checkpointing runs again. Forwards
    without gradients, or of a model in eval mode, are ignored.

    Args:
        model: The network, not its DDP wrapper.
        groups: Groups of the model; layers without a group are never watched.
        formulas: Which layers have factors, and which.
        halves: Whether to keep the two halves of the global batch apart.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], formulas: Formulas, *, halves: bool = False) -> None:
        self._model, self._formulas, self._halves = model, formulas, halves
        self.layers = covered_layers(model, groups, formulas)
        self._handles: list[RemovableHandle] = []
        self._sums: Sums = {}

    def arm(self, layers: Collection[str], share: Share) -> None:
        """Watches these layers until `take`; call it again before each micro-batch.

        Args:
            layers: Paths of the layers with active groups; those without factors are ignored.
            share: What the coming backward covers.
        """
        self._disarm()
        step_eagerly(on=True)
        for layer in self.layers.keys() & set(layers):
            self._handles.append(self.layers[layer].register_forward_hook(self._watch(layer, share)))

    def _watch(self, layer: str, share: Share) -> Any:
        squared = self._formulas.example_gradients
        scale = share.scale(example_gradients=squared)

        def forward_hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not (torch.is_grad_enabled() and output.requires_grad and self._model.training):
                return

            def gradient_hook(gradient: Tensor) -> None:
                with torch.no_grad():
                    values = gradient.float()
                    if squared:  # scaling the sums saves a pass over the gradient
                        self._add(layer, module, values, share, is_input=False, weight=scale**2)
                    else:
                        self._add(layer, module, values if scale == 1 else values * scale, share, is_input=False)

            output.register_hook(gradient_hook)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                self._add(layer, module, inputs[0].detach(), share, is_input=True)

        return forward_hook

    def _add(self, layer: str, module: nn.Module, values: Tensor, share: Share, *, is_input: bool, weight: float = 1.0) -> None:
        sums = self._formulas.inputs if is_input else self._formulas.outputs
        split = round(values.shape[0] * share.boundary) if self._halves else 0
        halves = values[:split], values[split:]
        if self._halves and values.shape[0] < share.examples and 0 < share.boundary < 1:
            halves = values, values  # called once for all examples, as position embeddings are: it cannot be taken apart
        for half, part_values in enumerate(halves):
            if part_values.shape[0]:
                for part, (total, count) in sums(module, part_values).items():
                    weighted = total if weight == 1 else total * weight
                    before = self._sums.get((layer, part, half))
                    self._sums[layer, part, half] = (weighted, count) if before is None else (before[0] + weighted, before[1] + count)

    def take(self) -> Sums:
        """What was collected since the first `arm`: complete layers only, in a fixed order, both halves of each; disarms."""
        self._disarm()
        step_eagerly(on=False)
        sums, self._sums = self._sums, {}
        seen = {layer: [part for of, part, _ in sums if of == layer] for layer in self.layers}
        complete = [layer for layer, parts in seen.items() if "row" in parts and "column" in parts]
        halves = (0, 1) if self._halves else (1,)
        keys = [(layer, part, half) for layer in complete for part in sorted(set(seen[layer])) for half in halves]
        return {key: sums[key] if key in sums else _nothing(sums, key) for key in keys}

    def _disarm(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


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
        if formulas.covers(module := modules[layer])
        and id(module) not in called_by_none
        and all(uses[id(p)] == 1 and role in ("weight", "bias") for role, p in module.named_parameters(recurse=False))
    }


def step_eagerly(*, on: bool) -> None:
    """A compiled model misses hooks that were registered after it was compiled: while they are there, it has to run as written."""
    torch.compiler.set_stance("force_eager" if on else "default")
