"""What is said of a run whose weights are not there; that they are exported is shown in tests/numerics/test_checkpoint.py."""

from pathlib import Path
from typing import Any

import pytest

from fat_ray.engine.export import export_model
from fat_ray.errors import InputError
from fat_ray.events import Status
from fat_ray.records.manifest import create_study
from fat_ray.study.jobs import search_trial
from tests.support.small_studies import small_study, write_run


@pytest.mark.parametrize(
    ("checkpoint", "sections", "status", "said"),
    [
        ({}, {}, Status.COMPLETED, r"keeps those of its Pareto front .* launch it with --set train\.checkpoint\.retain=all"),
        ({"every": 0}, {}, Status.COMPLETED, r"train\.checkpoint\.every is 0"),
        ({}, {}, None, "has not come to its first one yet"),
        ({"retain": "all"}, {}, Status.FAILED, "it ended before its first one"),
        ({}, {"search": {}, "baselines": []}, Status.FAILED, "it ended before its first one"),  # a single run is never removed
    ],
)
def test_why_a_run_has_no_weights_is_said(
    tmp_path: Path, checkpoint: dict[str, Any], sections: dict[str, Any], status: Status | None, said: str
) -> None:
    study = small_study(train={"steps": 8, "evaluate_every": 2, "checkpoint": checkpoint}, **sections)
    create_study(tmp_path / "study", study, "name: small\n")
    job = search_trial(study, tmp_path / "study", 3, {}).jobs[0]
    write_run(job, status)
    with pytest.raises(InputError, match=f"holds no checkpoint of run t0003-s0: .*{said}.*; it holds those of none"):
        export_model(tmp_path / "study" / "t0003-s0", tmp_path / "out.safetensors")
