"""What the code of a run did to its process is taken back, or the process is given up."""

import functools
import importlib
import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional

from fat_ray import plugins
from fat_ray.train.kept import Process

pytestmark = [pytest.mark.cpu_limit(10), pytest.mark.timeout(60)]  # imports torch

TASK = """
import functools, random, threading, time
import torch
from torch import nn
from torch.nn import functional

SEEN, DONE = [], threading.Event()
{more}

def patch():
    true = functional.relu
    functional.relu = functools.wraps(true)(lambda x: -true(x))
    nn.Linear.forward = lambda self, x: x
    torch.sigmoid = torch.tanh
    random.random = lambda: 4

def stay():
    thread = threading.Thread(target=lambda: DONE.wait(30), name="prefetch", daemon=True)
    thread.start()
    return thread
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Imports a task's module that was written for this test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(name: str, more: str = "") -> ModuleType:
        names.append(name)
        (tmp_path / f"{name}.py").write_text(TASK.format(more=more))
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_functions_that_a_task_replaced_are_put_back(write: Callable[..., ModuleType]) -> None:
    process, x = Process(), torch.tensor([-1.0, 2.0])
    linear, before = nn.Linear(2, 2), (functional.relu(x), torch.sigmoid(x))
    expected = linear(x)
    task = write("patching_task")
    task.patch()
    assert (functional.relu(x).tolist(), random.random()) == ([0.0, -2.0], 4)
    assert process.tidy() == []
    assert torch.equal(functional.relu(x), before[0])
    assert torch.equal(torch.sigmoid(x), before[1])
    assert torch.equal(linear(x), expected)
    assert random.random() < 1


def test_what_libraries_do_to_each_other_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    wrapped = functools.lru_cache(functional.gelu)  # made by the standard library
    monkeypatch.setattr(functional, "gelu", wrapped)
    assert process.tidy() == []
    assert functional.gelu is wrapped


def test_a_tasks_module_forgets(write: Callable[..., ModuleType]) -> None:
    process = Process()
    write("remembering_task").SEEN.append("run 1")
    assert process.tidy() == []
    assert importlib.import_module("remembering_task").SEEN == []


def test_a_module_that_was_there_before_and_installed_ones_are_left_alone(write: Callable[..., ModuleType]) -> None:
    early = write("early_task")
    process = Process()
    early.SEEN.append("before the first run")
    installed = importlib.import_module("xml.dom.minidom")
    process.tidy()
    assert sys.modules["early_task"] is early
    assert sys.modules["xml.dom.minidom"] is installed


def test_an_installed_package_that_the_study_names_forgets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.modules.pop("colorsys", None)
    process = Process()
    monkeypatch.setattr(plugins, "roots", set())
    plugins.resolve("task.name", "colorsys:rgb_to_hsv", "a task", plugins.InputError)
    first = sys.modules["colorsys"]
    assert process.tidy() == []
    assert sys.modules["colorsys"] is not first


def test_a_process_is_given_up_when_a_module_cannot_be_imported_twice(write: Callable[..., ModuleType]) -> None:
    process = Process()
    once = "if hasattr(torch, 'registered_once'):\n    raise RuntimeError('already registered')\ntorch.registered_once = True"
    try:
        write("registering_task", once)
        assert process.tidy() == ["its module registering_task cannot be imported twice: RuntimeError: already registered"]
    finally:
        del torch.registered_once


def test_a_process_is_given_up_when_a_thread_of_the_task_is_left(write: Callable[..., ModuleType]) -> None:
    process = Process()
    task = write("staying_task")
    thread = task.stay()
    assert process.tidy() == ["its thread prefetch still runs"]
    task.DONE.set()
    thread.join()


def test_a_process_is_given_up_when_a_child_is_left() -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,), daemon=True)
    child.start()
    try:
        assert Process().tidy() == [f"its child process {child.pid} still runs"]
    finally:
        child.kill()
        child.join()


def test_threads_of_libraries_do_no_harm() -> None:
    timer = threading.Timer(30, print)
    timer.start()
    try:
        assert Process().tidy() == []
    finally:
        timer.cancel()
