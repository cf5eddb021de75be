"""Studies of the tiny task, and their launch as a user would launch them: from a file, in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fat_ray.spec.study import StudySpec
from tests.support.nodes import environment
from tests.support.tiny_task import TINY_TASK

BOUND_S = 240
"""Longest wait for what must happen."""


def equal_trials(
    executor: str, *, name: str = "tiny", slow_s: float = 0.0, train: dict[str, Any] | None = None, **sections: Any
) -> StudySpec:
    """A study of one setting, which is trained again and again.

    Args:
        executor: How.
        name: The study's name.
        slow_s: Seconds added to each step.
        train: Replaces fields of its section.
        **sections: Replace other sections.
    """
    data: dict[str, Any] = {
        "name": name,
        "task": {"name": TINY_TASK, "settings": {"slow_s": slow_s, "batch_norm": True}},
        "train": {"steps": 8, "global_batch": 8, "evaluate_every": 2, "workers": 2, **(train or {})},
        "fisher": {"every": 1, "groups": {"blocks": 2}},
        "drift": {"bins": 8},
        "freeze": {"threshold": -0.5, "every": 6, "warmup_steps": 6},
        "search": {"train.optimizer.lr": {"type": "categorical", "choices": [0.01]}},
        "sampler": {"name": "random"},
        "baselines": [],
        "executor": executor,
        "wandb": {"mode": "disabled"},
        **sections,
    }
    return StudySpec.model_validate(data)


@contextmanager
def launched(spec: StudySpec, address: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`fat-ray launch` on a cluster; what it writes is in ``<directory>/<name>.log``."""
    path = directory / f"{spec.name}.yaml"
    path.write_text(spec.model_dump_json())  # JSON is YAML
    command = [sys.executable, "-m", "fat_ray", "launch", str(path), "--address", address, "--out", str(directory)]
    with (directory / f"{spec.name}.log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Returns once something is so."""
    deadline_s = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.1)
