"""Collects the sums of Kronecker factors during one forward and backward. Hooks exist only while armed: an idle step costs nothing."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fat_ray.fisher.factors import has_factors, input_sums, output_sums
from fat_ray.fisher.groups import Group

Sums = dict[tuple[str, str], tuple[Tensor, int]]
"""(layer, ``H`` or ``S``) to the sum of squares and its count."""


class Collector:
    """Watches the layers of a model that have factors.

    A layer that is called several times in one forward adds up over its calls. Forwards without gradients are ignored.

    Args:
        model: The network, not its DDP wrapper.
        groups: Groups of the model; layers without a group are never watched.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group]) -> None:
        modules = dict(model.named_modules())
        wanted = dict.fromkeys(group.layer for group in groups)
        self.layers = {layer: modules[layer] for layer in wanted if has_factors(modules[layer])}
        self._handles: list[RemovableHandle] = []
        self._sums: Sums = {}

    def arm(self, layers: Collection[str], num_examples: int) -> None:
        """Watches these layers until `take`.

        Args:
            layers: Paths of the layers with active groups; those without factors are ignored.
            num_examples: Examples of this rank's batch, over which its loss is the mean.
        """
        assert not self._handles, "armed twice without take()"
        for layer in self.layers.keys() & set(layers):
            self._handles.append(self.layers[layer].register_forward_hook(self._watch(layer, num_examples)))

    def _watch(self, layer: str, num_examples: int) -> Any:
        def forward_hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not (torch.is_grad_enabled() and output.requires_grad):
                return
            with torch.no_grad():
                self._add((layer, "H"), *input_sums(module, inputs[0]))

            def gradient_hook(gradient: Tensor) -> None:
                with torch.no_grad():
                    self._add((layer, "S"), *output_sums(module, gradient, num_examples))

            output.register_hook(gradient_hook)  # type: ignore[no-untyped-call]

        return forward_hook

    def _add(self, key: tuple[str, str], value: Tensor, count: int) -> None:
        before = self._sums.get(key)
        self._sums[key] = (value, count) if before is None else (before[0] + value, before[1] + count)

    def take(self) -> Sums:
        """What was collected since `arm`, complete layers only, in a fixed order; disarms."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        sums, self._sums = self._sums, {}
        complete = [layer for layer in self.layers if (layer, "H") in sums and (layer, "S") in sums]
        return {(layer, part): sums[layer, part] for layer in complete for part in ("H", "S")}
