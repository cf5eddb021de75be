"""Shared by all tests: where the tree is, time limits by kind of test (unit tests one second, unless they say otherwise), one Ray."""

from pathlib import Path

import pytest

from tests.support.ray_session import ray_session

__all__ = ["ray_session"]

UNIT_TIMEOUT_S = 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unit = Path(__file__).parent / "unit"
    for item in items:
        if unit in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(UNIT_TIMEOUT_S))
