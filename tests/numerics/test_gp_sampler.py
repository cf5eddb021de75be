"""The Gaussian process sampler, as tests/unit/study/test_sampler.py has it for the others, but slower."""

from pathlib import Path

import pytest

from tests.support.sampling import search, searching


@pytest.mark.parametrize("objectives", [1, 2])
def test_two_studies_agree_and_so_does_one_that_another_driver_continues(tmp_path: Path, objectives: int) -> None:
    spec = searching("gp", objectives=objectives, trials=8)
    whole = search(spec, tmp_path / "whole", 7)
    search(spec, tmp_path / "cut", 5)
    assert search(spec, tmp_path / "cut", 7) == whole
    assert all(("freeze.threshold" in params) == (params["freeze.policy"] == "fisher_drift") for params in whole)
