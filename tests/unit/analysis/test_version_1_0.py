"""Records that version 1.0 wrote (tests/data/records-1.0) say what they said then, as they are and compacted."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fat_ray.analysis.compare import compare
from fat_ray.analysis.render import as_document
from fat_ray.analysis.report import render_report
from fat_ray.analysis.status import read_status
from fat_ray.records.compact import compact
from fat_ray.records.reader import read_table, run_end, run_start

pytestmark = pytest.mark.timeout(20)

OLD = Path(__file__).parents[2] / "data" / "records-1.0"


@pytest.fixture(params=["as they are", "compacted"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "old")
    if request.param == "compacted":
        assert compact(tmp_path / "old").runs == ["none-s0", "t0001-s0"]
    return tmp_path / "old"


def test_the_comparison_is_that_of_version_1_0(study: Path) -> None:
    expected, found = json.loads((OLD / "expected.json").read_text()), as_document(compare([study]))
    for part in ("metric", "objectives", "references", "notes"):
        assert found[part] == expected[part]
    for part in ("runs", "settings"):
        assert [chosen(row, like) for row, like in zip(found[part], expected[part], strict=True)] == expected[part]


def chosen(row: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in like}


def test_what_version_1_0_did_not_measure_is_unknown(study: Path) -> None:
    for row in as_document(compare([study]))["runs"]:
        assert {row[name] for name in row if "_bytes" in name} == {None}
    assert run_end(study, "t0001-s0").comm_bytes is None
    assert set(read_table(study, "steps", "none-s0")["flops_forward"].to_pylist()) == {None}


def test_a_run_that_was_started_again_counts_once(study: Path) -> None:
    assert run_start(study, "t0001-s0").params == {"freeze.threshold": -0.5, "fisher.every": 2, "freeze.every": 4}
    run = next(row for row in as_document(compare([study]))["runs"] if row["run"] == "t0001-s0")
    assert (run["status"], run["steps"]) == ("completed", 4)
    assert [(trial.name, trial.step) for trial in read_status(study).trials] == [("none", 4), ("t0001", 4)]


def test_the_report_is_written(study: Path) -> None:
    assert "full fine-tuning reached 0.600" in render_report(compare([study]), run=None, library="")
