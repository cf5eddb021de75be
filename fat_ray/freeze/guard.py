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
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._held: Sequence[Held] = ()
        self._before: list[tuple[Held, Tensor]] = []
        self._within_step = False
        optimizer.register_step_pre_hook(self._enter)
        optimizer.register_step_post_hook(self._put_back)

    @property
    def held(self) -> Sequence[Held]:
        """What is guarded; also to be set within a step, by the closure that computes its gradients."""
        return self._held

    @held.setter
    def held(self, held: Sequence[Held]) -> None:
        self._held = held
        if self._within_step:
            self._remember()

    def _enter(self, *_: Any) -> None:
        self._within_step = True
        self._remember()

    def _remember(self) -> None:
        self._before = [(held, held.tensor.detach()[held.index].clone()) for held in self.held]

    def _put_back(self, *_: Any) -> None:
        for held, before in self._before:
            now = held.tensor.detach()[held.index]
            now.copy_(before if held.factor == 0 else before + held.factor * (now - before))
        self._before, self._within_step = [], False
