"""Whatever a run sets in its process is as it was for the next one."""

import gc
import locale
import logging
import multiprocessing
import os
import random
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import backends, nn
from torch.optim import optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fat_ray.train.worker import clean_process

pytestmark = [pytest.mark.cpu_limit(10), pytest.mark.timeout(60)]  # imports torch


def change_environment() -> None:
    os.environ["A_TASK_WAS_HERE"] = "1"
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    del os.environ["PATH"]


def leave_for_elsewhere() -> None:
    os.chdir("/")


def count_hook(*_: object) -> None:
    """A global hook."""


ATTACKS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(3)),
    "determinism": (torch.are_deterministic_algorithms_enabled, lambda: torch.use_deterministic_algorithms(mode=True, warn_only=True)),
    "anomaly": (torch.is_anomaly_enabled, lambda: torch.autograd.set_detect_anomaly(mode=True)),
    "grad": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "cudnn": (lambda: backends.cudnn.enabled, lambda: setattr(backends.cudnn, "enabled", False)),
    "benchmark": (lambda: backends.cudnn.benchmark, lambda: setattr(backends.cudnn, "benchmark", True)),
    "mkldnn": (lambda: backends.mkldnn.enabled, lambda: setattr(backends.mkldnn, "enabled", False)),
    "precision": (lambda: backends.mkldnn.matmul.fp32_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "any precision": (lambda: backends.fp32_precision, lambda: setattr(backends, "fp32_precision", "tf32")),
    "attention": (backends.cuda.math_sdp_enabled, lambda: backends.cuda.enable_math_sdp(enabled=False)),
    "empty tensors": (
        lambda: torch.utils.deterministic.fill_uninitialized_memory,
        lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    ),
    "module hooks": (
        lambda: len(nn.modules.module._global_forward_hooks),
        lambda: nn.modules.module.register_module_forward_hook(count_hook),
    ),
    "optimizer hooks": (
        lambda: len(optimizer._global_optimizer_pre_hooks),
        lambda: register_optimizer_step_pre_hook(count_hook),
    ),
    "start method": (
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda: multiprocessing.set_start_method("forkserver", force=True),
    ),
    "environment": (lambda: (dict(os.environ), time.tzname), change_environment),
    "directory": (Path.cwd, leave_for_elsewhere),
    "path": (lambda: list(sys.path), lambda: sys.path.insert(0, "/elsewhere")),
    "recursion": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(4321)),
    "warnings": (lambda: list(warnings.filters), lambda: warnings.simplefilter("error")),
    "logging": (lambda: (logging.root.level, list(logging.root.handlers)), lambda: logging.basicConfig(level=logging.DEBUG, force=True)),
    "collector": (lambda: (gc.isenabled(), gc.get_threshold()), lambda: (gc.disable(), gc.set_threshold(9))),
    "sockets": (socket.getdefaulttimeout, lambda: socket.setdefaulttimeout(3.0)),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8")),
    "output": (lambda: sys.stdout, lambda: setattr(sys, "stdout", sys.stderr)),
}  # fmt: skip


def test_what_a_run_sets_is_taken_back() -> None:
    before = {name: look() for name, (look, _) in ATTACKS.items()}
    with clean_process(0, 1):
        for look, attack in ATTACKS.values():
            unharmed = look()
            attack()
            assert look() != unharmed
    assert {name: look() for name, (look, _) in ATTACKS.items()} == before


def test_a_run_that_breaks_leaves_nothing_either() -> None:
    def run() -> None:
        with clean_process(0, 1):
            torch.set_default_dtype(torch.float64)
            raise KeyError("broken")

    with pytest.raises(KeyError):
        run()
    assert torch.get_default_dtype() is torch.float32


def test_random_numbers_depend_on_the_seed_alone() -> None:
    drawn = []
    for before in (1, 2):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(before)
        with clean_process(7, 1):
            drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002 - the global one is meant
    assert drawn[0] == drawn[1]
