"""Hooks around an optimizer's step: what must not move is put back, to the bit, and what must move less is held back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Held:
    """Entries whose update is scaled.

    Attributes:
        tensor: The whole tensor.
        index: Its entries.
        factor: 0: they are put back; else `p <- p_old + factor·(p_new - p_old)`.
    """

    tensor: nn.Parameter
    index: tuple[slice, ...]
    factor: float = 0.0


class Guard:
    """Stands around every step of an optimizer, however it is called.

    Args:
        optimizer: Gets the hooks.

    Attributes:
        held: What is guarded.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.held: Sequence[Held] = ()
        self._before: list[tuple[Held, Tensor]] = []
        optimizer.register_step_pre_hook(self._remember)
        optimizer.register_step_post_hook(self._put_back)

    def _remember(self, *_: Any) -> None:
        self._before = [(held, held.tensor.detach()[held.index].clone()) for held in self.held]

    def _put_back(self, *_: Any) -> None:
        for held, before in self._before:
            now = held.tensor.detach()[held.index]
            now.copy_(before if held.factor == 0 else before + held.factor * (now - before))
        self._before = []
