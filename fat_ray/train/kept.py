"""A worker's process that is kept for other runs: what the code of a run did to it is taken back, or the process is not used again.

Settings are the business of `fat_ray.train.pristine`, which takes them back after every run. Here it is about code:

- modules that are not part of an installed library, and those of the user's task and policy, are imported anew, so that what they
  remember is forgotten;
- functions and classes of torch, NumPy and Python that such a module has replaced are put back;
- a thread or child process of such a module that is still there cannot be taken back.
"""

import gc
import importlib
import multiprocessing
import site
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from fat_ray import plugins
from fat_ray.train.failure import one_line

PATCHABLE = (
    *("torch", "torch.nn", "torch.optim", "torch.utils.data", "torch.autograd", "torch.linalg", "torch.fft", "torch._tensor"),
    *("numpy", "random", "math", "builtins", "os", "time"),
)
"""Modules whose functions and classes are put back; of torch.nn, torch.optim and numpy.random all below them, too."""
_DEEP = ("torch.nn.", "torch.optim.", "numpy.random.")
_LIBRARIES = tuple(
    sorted({str(Path(path).resolve()) for path in (*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values())})
)
_OURS = __name__.partition(".")[0]
_ABSENT = object()


def _is_users(name: str) -> bool:
    """Whether a module is the user's own: named in the study, or no part of an installed library."""
    root = name.partition(".")[0]
    if root in (_OURS, "__main__", "__mp_main__"):
        return False
    if root in plugins.roots or name not in sys.modules:
        return True
    file = getattr(sys.modules[name], "__file__", None)
    return file is not None and not str(Path(file).resolve()).startswith(_LIBRARIES)


def _maker(value: Any) -> str:
    """Name of the module in which a function, a class, or the class of anything else was defined; a wrapper does not hide it."""
    known = getattr(value, "__globals__", {}).get("__name__") or getattr(value, "__module__", None)
    return str(known or type(value).__module__)


def _patchable() -> Iterator[tuple[Any, str, Any]]:
    """Functions and classes with where they are, and the functions of these classes."""
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or not (name in PATCHABLE or name.startswith(_DEEP)):
            continue
        for key, value in list(vars(module).items()):
            if callable(value):
                yield module, key, value
            if isinstance(value, type) and value.__module__ == name:
                yield from ((value, inner, function) for inner, function in list(vars(value).items()) if callable(function))


def _is_patch(value: Any, now: Any) -> bool:
    """Whether a run has put `now` in the place of `value`. Libraries that are imported, or set themselves up, may do so for good."""
    if now is _ABSENT or _is_users(_maker(now)):
        return True
    same_package = _maker(now).partition(".")[0] == _maker(value).partition(".")[0]
    return same_package and getattr(now, "__name__", "") != getattr(value, "__name__", "")


class Process:
    """This process, as it is when this is made: before its first run."""

    def __init__(self) -> None:
        self._modules = set(sys.modules)
        self._patchable = list(_patchable())
        self._num_tidied = 0
        _set_aside()

    def tidy(self) -> list[str]:
        """Takes back what the code of a run has done; returns what it could not take back."""
        self._put_back()
        left = [f"its thread {thread.name} still runs" for thread in threading.enumerate() if _is_users(_target(thread))]
        left += [f"its child process {child.pid} still runs" for child in multiprocessing.active_children()]
        if "torch._dynamo" in sys.modules:  # what it has compiled counts against what it may compile
            sys.modules["torch._dynamo"].reset()
        users = self._forget()
        if not self._num_tidied:
            _set_aside()
        self._num_tidied += 1
        return left + list(_import_anew(users))

    def _put_back(self) -> None:
        for owner, name, value in self._patchable:
            now = vars(owner).get(name, _ABSENT)
            if now is not value and _is_patch(value, now):
                setattr(owner, name, value)

    def _forget(self) -> list[str]:
        """Removes the user's modules; returns their names."""
        new = [name for name in sys.modules if name.partition(".")[0] not in self._modules and _is_users(name)]
        known = [name for name in new if isinstance(getattr(sys.modules[name], "__loader__", None), SourceFileLoader)]
        for name in known:
            del sys.modules[name]
        return known


def _set_aside() -> None:
    """Keeps the collector, which looks for the remains of every run, from looking through all of torch each time.

    To be called before a process has trained, and once more after its first run, which has imported the rest. Not more often: what a run
    leaves for a later one to free would never be freed.
    """
    gc.collect()
    gc.freeze()


def _import_anew(modules: Iterable[str]) -> Iterator[str]:
    """Imports modules again; says of which this was not possible."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever an import raises
            yield f"its module {name} cannot be imported twice: {one_line(error)}"


def _target(thread: threading.Thread) -> str:
    """Name of the module whose code a thread runs."""
    target = getattr(thread, "_target", None)
    return _maker(target) if target is not None else type(thread).__module__
