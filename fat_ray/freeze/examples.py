"""What a module is given or returns, taken apart into its examples and put together again, to the bit and to the stride."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fat_ray.freeze.digest import Digest, contents, digest

_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


class UnsuitableError(Exception):
    """What a module is given or returns cannot be remembered, for the reason in the message."""


@dataclass(frozen=True)
class Taken:
    """Values with their structure.

    Attributes:
        leaves: Tensors and constants.
        spec: How they hang together.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The same structure with other tensors."""
        others = iter(tensors)
        return tree_unflatten([next(others) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves], self.spec)

    def plan(self, count: int) -> Digest:
        """Everything but the contents: structure, constants, and shape, type and strides of each tensor.

        Args:
            count: Examples in the batch.
        """
        described = [_describe(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return digest(repr((count, self.spec, described)).encode())


def take(value: Any) -> Taken:
    """Takes a value apart.

    Raises:
        UnsuitableError: It holds something that is neither a plain dense tensor nor a constant.
    """
    leaves, spec = tree_flatten(value)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if type(leaf) not in (Tensor, torch.nn.Parameter) or leaf.layout != torch.strided or leaf.is_quantized:
                raise UnsuitableError(f"a {type(leaf).__name__} of layout {leaf.layout}")
        elif not isinstance(leaf, _CONSTANTS):
            raise UnsuitableError(f"a {type(leaf).__name__}")
    return Taken(tuple(leaves), spec)


def keys(tensors: Sequence[Tensor], count: int, plan: Digest, known: Callable[[Tensor], list[Digest] | None]) -> list[Digest]:
    """One digest per example of all that its output may depend on: its part of each tensor that has one, and the whole of the others.

    Args:
        tensors: Those whose first dimension is `count` have one part per example.
        count: Examples in the batch.
        plan: What else decides.
        known: What stands for the contents of each example of a tensor, where that is known without reading it.
    """
    shared = [contents(tensor) for tensor in tensors if not has_examples(tensor, count)]
    apart = [(tensor, known(tensor)) for tensor in tensors if has_examples(tensor, count)]
    return [
        digest(plan, *shared, *(digests[index] if digests else contents(tensor[index]) for tensor, digests in apart))
        for index in range(count)
    ]


def has_examples(tensor: Tensor, count: int) -> bool:
    """Whether the first dimension of a tensor is that of the examples."""
    return tensor.ndim > 0 and tensor.shape[0] == count


def part(tensor: Tensor, index: int) -> Tensor:
    """A copy of one example, with its strides."""
    return tensor[index].clone(memory_format=torch.preserve_format)


def joined(parts: Sequence[Tensor], like: tuple[int, ...]) -> Tensor:
    """Examples as a batch.

    Args:
        parts: One per example.
        like: Strides of the batch.
    """
    first = parts[0]
    batch = torch.empty_strided((len(parts), *first.shape), like, dtype=first.dtype, device=first.device)
    for index, example in enumerate(parts):
        batch[index].copy_(example)
    return batch


def is_batch(tensor: Tensor, count: int) -> bool:
    """Whether a tensor holds `count` examples one after the other, each without gaps."""
    if not has_examples(tensor, count):
        return False
    example = tensor[0]
    dense = example.clone(memory_format=torch.preserve_format).stride() == example.stride()
    return dense and (count == 1 or tensor.stride(0) == example.numel())


def _describe(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
