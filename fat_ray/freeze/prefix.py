"""The frozen prefix of a network: where it ends, and a memory of what it returns (`freeze.cache_prefix_bytes`).

In network order, the order in which modules were registered, the prefix is made of the outermost modules that hold nothing active and
whose output depends on their input alone, up to the first module that is not so; the first children of an `nn.Sequential` count as one.
What they return is remembered as long as they are given nothing that depends on an active entry: see `recall`. So the order only says
where to look. A module that is called elsewhere is found out by what it is given.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from fat_ray.freeze.disguise import Disguised, disguise, reveal
from fat_ray.freeze.held import normalises_by_batch
from fat_ray.freeze.recall import Recall, Shared, Tell
from fat_ray.freeze.sliced import active_runs


@dataclass(frozen=True)
class Stretch:
    """A module of the prefix.

    Attributes:
        path: Its name.
        module: The module.
        first: How many of its children belong to the prefix, for a Sequential that does in part; None: all of the module.
    """

    path: str
    module: nn.Module
    first: int | None = None

    @property
    def body(self) -> list[nn.Module]:
        """What is remembered: the module or its first children."""
        return [self.module] if self.first is None else list(self.module.children())[: self.first]


class Remembered(Disguised):
    """Asks its memory first.

    Attributes:
        recall: The memory.
        first: As in `Stretch`.
    """

    disguise = ("recall", "first")
    recall: Recall
    first: int | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """That of the plain module."""
        if self.first is None:
            return self.recall(partial(self.plain_type.forward, self), args, kwargs)
        x = self.recall(self.recall.body, args, kwargs)
        for child in itertools.islice(self.children(), self.first, None):
            x = child(x)
        return x


class PrefixMemory:
    """The memories of all modules of the prefix.

    Args:
        model: The network, not its DDP wrapper.
        limit: Bytes that they may hold together.
        tell: Told in words what is remembered, and what no longer is, and why.
    """

    def __init__(self, model: nn.Module, limit: int, tell: Tell) -> None:
        self._model, self._tell = model, tell
        self._shared = Shared(limit, tell)
        self._recalls: dict[tuple[int, ...], Recall] = {}
        self._told = ""

    @property
    def used(self) -> int:
        """Bytes that are held."""
        return self._shared.used

    @property
    def recalls(self) -> list[Recall]:
        """The memories, in network order."""
        return list(self._recalls.values())

    def release(self) -> None:
        """Makes the modules plain again: to be called before the forms of their parameters change. What is remembered stays."""
        for module in self._model.modules():
            reveal(module, Remembered)

    def plan(self) -> None:
        """Finds the prefix; to be called after `release`, with the modules in the modes in which they are trained."""
        before, self._recalls = self._recalls, {}
        found, end = prefix_of(self._model)
        for stretch in found:
            key = tuple(map(id, stretch.body))
            recall = before.pop(key, None) or Recall(stretch.path, _as_module(stretch), self._shared)
            try:
                disguise(stretch.module, Remembered, {"recall": recall, "first": stretch.first})
                self._recalls[key] = recall
            except TypeError as error:
                recall.give_up(f"its class cannot change: {error}")
        for gone in before.values():
            gone.forget()
        text = f"outputs of {', '.join(s.path for s in found)} are remembered; {end}" if found else f"nothing is remembered: {end}"
        if text != self._told:
            self._told = text
            self._tell(text)

    @contextmanager
    def recomputed(self) -> Iterator[None]:
        """While it lasts, everything is computed."""
        self._shared.computes = True
        try:
            yield
        finally:
            self._shared.computes = False

    def begin(self) -> None:
        """To be called before each forward: only in training mode anything is remembered."""
        self._shared.in_training = self._model.training
        for recall in self._recalls.values():
            recall.spared = 0


def prefix_of(model: nn.Module) -> tuple[list[Stretch], str]:
    """The stretches of the prefix in network order, and why it ends."""
    return _walk("", model)


def _walk(path: str, module: nn.Module) -> tuple[list[Stretch], str]:
    if not (end := _obstacle(path, module)) and type(module).forward is not nn.Module.forward:
        return ([Stretch(path, module)] if any(True for _ in module.parameters()) else []), ""
    found: list[Stretch] = []
    children = [(f"{path}.{name}".lstrip("."), child) for name, child in module.named_children()]
    if type(module).forward is nn.Sequential.forward:
        clear = list(itertools.takewhile(lambda child: not _obstacle(*child), children))
        if any(True for _, child in clear for _ in child.parameters()):
            found = [Stretch(f"{path}[:{len(clear)}]", module, len(clear))]
        children = children[len(clear) :]
    for child_path, child in children:
        within, end_within = _walk(child_path, child)
        found += within
        if end_within:
            return found, end_within
    return found, end


def _obstacle(path: str, module: nn.Module) -> str:
    """Why what a module returns cannot be remembered; empty where it may. What only calls can tell is for `recall` to find."""
    for name, inner in module.named_modules():
        where = f"{path}.{name}".strip(".") or "the model"
        if active_runs(inner) or any(parameter.requires_grad for parameter in inner.parameters(recurse=False)):
            return f"{where} is active"
        if normalises_by_batch(inner):
            return f"{where} normalises by each batch (freeze.frozen_statistics: hold)"
        if isinstance(inner, _DropoutNd) and inner.training and inner.p > 0:
            return f"{where} drops at random"
        if inner._forward_hooks or inner._forward_pre_hooks:  # noqa: SLF001  they would not be called
            return f"{where} has hooks"
    return ""


def _as_module(stretch: Stretch) -> nn.Module:
    return stretch.module if stretch.first is None else nn.Sequential(*stretch.body)
