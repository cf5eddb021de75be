import os

import pytest


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch):
    """Syncing takes most of a unit test's second on a busy disk; the conformance tests do it for real."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
