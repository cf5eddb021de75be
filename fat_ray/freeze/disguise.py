"""Modules that are of another class for a while, as sliced layers are: they keep identity, hooks and state, and their copies are plain."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn


class Disguised(nn.Module):
    """What such classes share. A copy or a pickle is of the plain class, without what the disguise has added.

    Attributes:
        plain_type: The class that the module had before.
        disguise: Names in the module's `__dict__` that came with it.
    """

    plain_type: ClassVar[type[nn.Module]]
    disguise: ClassVar[tuple[str, ...]] = ()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        plain: type[nn.Module] = type(self)
        hidden: set[str] = set()
        while issubclass(plain, Disguised):
            hidden.update(plain.disguise)
            plain = plain.plain_type
        state = {name: value for name, value in vars(self).items() if name not in hidden}
        return _blank, (plain,), state


def _blank(plain: type[nn.Module]) -> nn.Module:
    """A module without its state, for copies and pickles."""
    return plain.__new__(plain)


_CLASSES: dict[tuple[type[Disguised], type[nn.Module]], type[Disguised]] = {}


def disguise(module: nn.Module, kind: type[Disguised], added: Mapping[str, Any]) -> None:
    """Makes the module one of a subclass of `kind` and of its own class.

    Raises:
        TypeError: Its class does not allow that.
    """
    plain = type(module)
    if (kind, plain) not in _CLASSES:
        metaclass: type[type] = type(plain)
        _CLASSES[kind, plain] = metaclass(f"{kind.__name__}{plain.__name__}", (kind, plain), {"plain_type": plain, "__module__": __name__})
    module.__class__ = _CLASSES[kind, plain]
    vars(module).update(added)


def reveal(module: nn.Module, kind: type[Disguised]) -> None:
    """Gives a module its class back, if this disguise is its outermost."""
    if isinstance(module, kind) and type(module).__bases__[0] is kind:
        for name in kind.disguise:
            vars(module).pop(name, None)
        module.__class__ = module.plain_type  # type: ignore[assignment]
