"""Floating point operations of a training step, two per multiply-add, from the shapes of the matrix products and convolutions it executes.

One step is watched after each change of the active tensors and for each new shape of the batch; all others repeat what is known. Watching
sees the operations below autograd, as `torch.utils.flop_counter` does: layers, attention and what user code multiplies alike, and of the
backward only what autograd runs, so that frozen prefixes and sliced layers cost what they cost. The formulas are that module's, where
`register_flop_formula` adds those of custom operations, but for two mends: the weight gradient of a grouped convolution, which it
overstates by the number of groups (torch 2.13), and fused attention on the CPU, which it does not know. All else (norms, activations,
sums, the optimizer) is negligible beside these and not counted. The Fisher statistics consist of sums alone, so they do not count either.

What activation checkpointing computes again counts again, as forward. A model that takes another path at each step (stochastic depth,
mixtures of experts) is counted as it was in the watched step.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from fat_ray.freeze.prefix import PrefixMemory
from fat_ray.tasks.base import Batch

_aten = torch.ops.aten
_FUSED_ON_CPU = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,  # noqa: SLF001
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,  # noqa: SLF001
}


@dataclass(frozen=True)
class Flops:
    """Operations of one step.

    Attributes:
        forward: Forward, computed-again parts included.
        input_gradient: Backward to the inputs of products; of products without a weight, as in attention, all of the backward.
        weight_gradient: Backward to weights.
    """

    forward: float = 0.0
    input_gradient: float = 0.0
    weight_gradient: float = 0.0


class FlopMeter:
    """Knows what the forward and backward of a step cost on this rank.

    Where outputs of a frozen prefix are remembered, what was not computed is not counted, and what was computed once more to try it out is.
    Watched steps compute everything.

    Args:
        model: The network, not its DDP wrapper.
        memory: What is remembered; None: nothing.

    Attributes:
        step: What the last step cost.
        layers: What the forward of the last step that was watched cost, as in `events.Layers`.
    """

    def __init__(self, model: nn.Module, memory: PrefixMemory | None = None) -> None:
        self._model, self._memory = model, memory
        self._known: dict[tuple[torch.Size, ...], tuple[Flops, Mapping[nn.Module, float]]] = {}
        self.step = Flops()
        self.layers: list[tuple[str | None, float]] = []

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Surrounds the forward and backward of a step, after which `step` is what they cost."""
        shapes = tuple(tensor.shape for tensor in batch)
        recalls = self._memory.recalls if self._memory else []
        if shapes not in self._known:
            computed = self._memory.recomputed() if self._memory else nullcontext()
            with computed, _Watch(self._model, {recall.body for recall in recalls}) as watch, watch.modules():
                yield
            self._known[shapes] = watch.flops(), {module: sum(calls) / len(calls) for module, calls in watch.calls.items()}
            self.layers = watch.layers
        else:
            yield
        flops, of_a_call = self._known[shapes]
        spared = sum(recall.spared * of_a_call.get(recall.body, 0) for recall in recalls)
        self.step = replace(flops, forward=flops.forward - spared)

    def forget(self) -> None:
        """To be called when other tensors are trained than before."""
        self._known.clear()


class _Watch(TorchDispatchMode):
    """Adds up the operations of everything that runs inside it, the backward of the same thread or of autograd's own included.

    Args:
        model: Whose parameters are weights.
        apart: Modules of which each call is also counted by itself, in `calls`.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, apart: Collection[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._apart, self.calls = apart, dict[nn.Module, list[int]]()
        self._weights: dict[int, str] = {}  # to the module that owns it
        for name, parameter in model.named_parameters():
            self._weights.setdefault(_memory(parameter), name.rpartition(".")[0])
        self.layers: list[tuple[str | None, float]] = []
        self._weight_nodes: set[Any] = set()  # holds the nodes, or another one could take their place in memory
        self._modules_running = 0
        self._forward = self._input_gradient = self._weight_gradient = 0

    def flops(self) -> Flops:
        return Flops(float(self._forward), float(self._input_gradient), float(self._weight_gradient))

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Knows while it lasts whether a module runs, also one that checkpointing runs again in the backward."""
        entered = register_module_forward_pre_hook(self._enter_module)
        left = register_module_forward_hook(self._leave_module, always_call=True)
        try:
            yield
        finally:
            entered.remove()
            left.remove()

    def _enter_module(self, module: nn.Module, *_: Any) -> None:
        self._modules_running += 1
        if module in self._apart:
            self.calls.setdefault(module, []).append(-self._forward)

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        self._modules_running -= 1
        if module in self._apart:
            self.calls[module][-1] += self._forward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Executes an operation and counts it."""
        kwargs = kwargs or {}
        operation = getattr(func, "overloadpacket", func)
        formula = flop_counter.flop_registry.get(_FUSED_ON_CPU.get(operation, operation))
        if formula is None and torch.is_inference_mode_enabled() and isinstance(func, OpOverload):
            with self:
                out = func.decompose(*args, **kwargs)  # here composite operations arrive whole
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        layers = self._follow_weights([*args, *kwargs.values()], out)
        if formula is None and not layers:
            return out
        flops = 0 if formula is None else formula(*args, **kwargs, out_val=out)
        if operation is _aten.convolution_backward:
            self._count_convolution_backward(args, out)
        elif self._in_backward():
            self._count_backward(flops, args)
        else:
            self._count_forward(flops, args, layers)
        return out

    def _in_backward(self) -> bool:
        """Whether autograd computes gradients, not a forward again."""
        return torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled() and not self._modules_running  # noqa: SLF001

    def _is_weight(self, tensor: Tensor) -> bool:
        return _memory(tensor) in self._weights

    def _follow_weights(self, given: list[Any], out: Any) -> list[str]:
        """What is computed from weights alone (views, casts, normalised weights) is a weight; memory that is used anew is not.

        Returns:
            The layers whose weights are used on something else, that of the largest weight first.
        """
        operands, made = _tensors(given), _tensors([out])
        weights = sorted((operand for operand in operands if self._is_weight(operand)), key=lambda weight: -weight.numel())
        layers = [self._weights[_memory(weight)] for weight in weights]
        alone = 0 < len(weights) == len(operands)
        for memory in map(_memory, made):
            if alone:
                self._weights[memory] = layers[0]
            else:
                self._weights.pop(memory, None)
        return [] if alone else layers

    def _count_forward(self, flops: int, args: Any, layers: list[str]) -> None:
        """Adds to the layer, at the place of its first use; products without a weight that follow each other are one place."""
        self._forward += flops
        if flops:
            self._weight_nodes |= {operand.grad_fn for operand in _tensors(args) if self._is_weight(operand)}
        self._add(layers[0] if layers else None, flops)
        for other in layers[1:]:
            self._add(other, 0)

    def _add(self, layer: str | None, flops: int) -> None:
        candidates = range(len(self.layers)) if layer is not None else range(len(self.layers))[-1:]
        place = next((place for place in candidates if self.layers[place][0] == layer), None)
        if place is None:
            self.layers.append((layer, float(flops)))
        else:
            self.layers[place] = layer, self.layers[place][1] + flops

    def _count_backward(self, flops: int, args: Any) -> None:
        """A product with a weight leads to the input; one without to the weight, where there is one."""
        if not any(self._is_weight(operand) for operand in _tensors(args)) and self._trains_weight():
            self._weight_gradient += flops
        else:
            self._input_gradient += flops

    def _trains_weight(self) -> bool:
        """Whether the node of the graph that runs now has a weight behind it: a leaf, or what was computed from weights."""
        node = torch._C._current_autograd_node()  # noqa: SLF001
        behind = [function for function, _ in node.next_functions] if node is not None else []
        return any(function in self._weight_nodes or hasattr(function, "variable") for function in behind if function is not None)

    def _count_convolution_backward(self, args: Any, out: Any) -> None:
        """Each entry of the weight meets each position once, in whichever direction."""
        gradient, x, weight, _, _, _, _, transposed = args[:8]
        positions = (x if transposed else gradient).shape
        per_entry = 2 * positions[0] * math.prod(positions[2:])
        self._input_gradient += per_entry * weight.numel() if out[0] is not None else 0
        self._weight_gradient += per_entry * weight.numel() if out[1] is not None else 0


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among arguments or results, lists and tuples opened: what operations take and give."""
    opened = [inner for value in values for inner in (value if isinstance(value, list | tuple) else (value,))]
    return [value for value in opened if isinstance(value, Tensor)]


def _memory(tensor: Tensor) -> int:
    """What a tensor has in common with its views; unique while one of them lives."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]  # noqa: SLF001
