"""Shared by all tests: where the tree is, time limits by kind of test (unit tests one second, unless they say otherwise), one Ray."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_session import ray_session

__all__ = ["ray_session"]

# As in a worker with one CPU, and before torch is imported: layouts and sums depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"  # of whoever has a key, nothing may be sent anywhere

UNIT_CPU_S = 1.0
"""What a unit test may compute, unless it has a time limit of its own. CPU time: a busy machine makes no test slower."""
UNIT_TIMEOUT_S = 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_limited(item):
            item.add_marker(pytest.mark.timeout(UNIT_TIMEOUT_S))
            item.add_marker(pytest.mark.cpu_limit(UNIT_CPU_S))


def is_limited(item: pytest.Item) -> bool:
    return Path(__file__).parent / "unit" in item.path.parents and item.get_closest_marker("timeout") is None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    began_s = time.process_time()
    yield
    limit = item.get_closest_marker("cpu_limit")
    used_s = time.process_time() - began_s
    if limit is not None and used_s > limit.args[0]:
        pytest.fail(f"used {used_s:.2f} s of CPU time, a unit test may use {limit.args[0]} s", pytrace=False)
