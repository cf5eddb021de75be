"""Settings of a process that a run may change: they are taken back after it, so that the next run finds them as it did.

What else a run's own code may have done to a process that is kept for other runs is for `fat_ray.train.kept`.
"""

import gc
import locale
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import backends
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

_PARTS = ((backends.cudnn, "conv"), *((backends.mkldnn, part) for part in ("matmul", "conv", "rnn")))
_ATTRIBUTES: tuple[tuple[Any, str], ...] = (
    # In this order, since each precision decides about those below it.
    *((place, "fp32_precision") for place in (backends, backends.cudnn, backends.cudnn.rnn, backends.cuda.matmul)),
    *((getattr(backend, part), "fp32_precision") for backend, part in _PARTS),
    *((backends.cuda.matmul, f"allow_{name}") for name in ("fp16_accumulation", "fp16_reduced_precision_reduction")),
    (backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    *((backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
    *((backends.mkldnn, name) for name in ("enabled", "deterministic")),
    *((backends.opt_einsum, name) for name in ("enabled", "strategy")),
    (torch.utils.deterministic, "fill_uninitialized_memory"),
    (module_hooks, "_global_is_full_backward_hook"),
    *((sys, name) for name in ("stdout", "stderr", "excepthook")),
    *((logging.root, name) for name in ("level", "disabled")),
    (logging.root.manager, "disable"),
    (warnings, "showwarning"),
)
_FUNCTIONS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(mode=value[0], warn_only=value[1]),
    ),
    (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    (backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
    (backends.cuda.flash_sdp_enabled, backends.cuda.enable_flash_sdp),
    (backends.cuda.mem_efficient_sdp_enabled, backends.cuda.enable_mem_efficient_sdp),
    (backends.cuda.math_sdp_enabled, backends.cuda.enable_math_sdp),
    (backends.cuda.cudnn_sdp_enabled, backends.cuda.enable_cudnn_sdp),
    (torch.__future__.get_overwrite_module_params_on_conversion, torch.__future__.set_overwrite_module_params_on_conversion),
    (torch.__future__.get_swap_module_params_on_conversion, torch.__future__.set_swap_module_params_on_conversion),
    (torch.multiprocessing.get_sharing_strategy, torch.multiprocessing.set_sharing_strategy),
    (partial(multiprocessing.get_start_method, allow_none=True), partial(multiprocessing.set_start_method, force=True)),
    (os.getcwd, os.chdir),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (gc.get_threshold, lambda value: gc.set_threshold(*value)),
    (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
)
_LISTS: tuple[tuple[Any, str], ...] = (
    *((sys, name) for name in ("path", "meta_path", "path_hooks")),
    *((logging.root, name) for name in ("handlers", "filters")),
    (warnings, "filters"),
)
_MAPPINGS: tuple[MutableMapping[Any, Any], ...] = (
    os.environ,
    *(value for name, value in vars(module_hooks).items() if name.startswith("_global_") and isinstance(value, dict)),
    *(value for name, value in vars(optimizer_hooks).items() if name.startswith("_global_") and isinstance(value, dict)),
)


class Settings:
    """What a process can be told to do otherwise, as it is when this is made."""

    def __init__(self) -> None:
        self._attributes = [(place, name, getattr(place, name)) for place, name in _ATTRIBUTES]
        self._functions = [(get, change, get()) for get, change in _FUNCTIONS]
        self._lists = [(place, name, getattr(place, name), list(getattr(place, name))) for place, name in _LISTS]
        self._mappings = [(place, dict(place)) for place in _MAPPINGS]
        self._handlers = {number: signal.getsignal(number) for number in _signals()}

    def restore(self) -> None:
        """Takes back what has changed since."""
        time_zone = os.environ.get("TZ")
        for place, name, value in self._attributes:
            if getattr(place, name) != value:
                setattr(place, name, value)
        for get, change, value in self._functions:
            if get() != value:
                change(value)
        for place, name, items, content in self._lists:
            items[:] = content
            setattr(place, name, items)
        for mapping, values in self._mappings:
            _give_back(mapping, values)
        self._restore_signals()
        if os.environ.get("TZ") != time_zone:
            time.tzset()

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _signals() -> Iterator[int]:
    """Signals whose handlers can be set in this thread, and were set from Python or not at all."""
    if threading.current_thread() is threading.main_thread():
        yield from (number for number in signal.valid_signals() if signal.getsignal(number) is not None)


def _give_back(mapping: MutableMapping[Any, Any], values: MutableMapping[Any, Any]) -> None:
    """Gives a mapping back its content, touching only what differs."""
    for key in mapping.keys() - values.keys():
        del mapping[key]
    for key, value in values.items():
        if key not in mapping or mapping[key] != value:
            mapping[key] = value
