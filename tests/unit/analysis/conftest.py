"""A small study with a run of every kind."""

from pathlib import Path

import pytest
import scipy.stats  # noqa: F401 - now, not within the CPU limit of the first test that compares seeds

from fat_ray.events import Status
from tests.support.studies import FakeRun, study_spec, write_study

FULL = FakeRun("none-s0", role="baseline", label="none", frozen=0, f1=0.60)
MATCHED = FakeRun("random_matched-s0", role="baseline", label="random_matched", f1=0.50)
GOOD = FakeRun("t0000-s0", trial=0, f1=0.58, frozen=0.9, params={"freeze.threshold": -0.5, "fisher.every": 2, "freeze.every": 4})
CHEAP = FakeRun("t0001-s0", trial=1, f1=0.40, frozen=1.0, params={"freeze.threshold": -0.1, "fisher.every": 4, "freeze.every": 2})
PRUNED = FakeRun("t0002-s0", trial=2, f1=0.99, frozen=1.0, status=Status.PRUNED, steps=12, reason="behind the others at step 12")
FAILED = FakeRun("t0003-s0", trial=3, f1=0.99, status=Status.FAILED, steps=5, reason="worker 1 was killed")
RUNNING = FakeRun("t0004-s0", trial=4, f1=0.99, status=None, steps=11)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    runs = [FULL, MATCHED, GOOD, CHEAP, PRUNED, FAILED, RUNNING]
    return write_study(tmp_path / "study", runs, spec=study_spec(steps=20, freeze={"warmup_steps": 4}), text="name: crack-quick\n")
