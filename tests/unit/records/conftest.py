import os

import pyarrow as pa
import pytest

pa.array([1])  # the first array looks for pandas, which may take most of a unit test's second


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing takes most of a unit test's second on a busy disk; the conformance tests do it for real."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
