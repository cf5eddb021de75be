"""A recorded run once more: equal to the bit, or told where it parts from its records."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from fat_ray.cli.main import app
from fat_ray.errors import InputError
from fat_ray.records.manifest import create_study
from fat_ray.records.reader import parts, run_end, runs
from fat_ray.spec.study import StudySpec
from fat_ray.study.rerun import rerun
from fat_ray.train.local import run_local
from tests.support.jobs import tiny_job

RUN = "t0003-s0"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(directory: Path, run: str = RUN, **settings: Any) -> None:
    """A run of the tiny task, which draws from all generators."""
    job = tiny_job(directory, run, workers=1, noise=True, batch_norm=True, **settings)
    run_local(job.model_copy(update={"role": "search", "trial": 3, "params": {"freeze.threshold": 0.0}}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rerun") / "tiny"
    spec = StudySpec.model_validate_json('{"name": "tiny", "wandb": {"mode": "disabled"}}')
    create_study(directory, spec, "name: tiny\n")
    train(directory)
    return directory


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def alter(study: Path, table: str, column: str, change: Callable[[pa.ChunkedArray], pa.ChunkedArray], run: str = RUN) -> None:
    """Writes a column of a run's records anew."""
    for part in parts(study, table, run):
        found = pq.read_table(part)
        place = found.schema.get_field_index(column)
        changed = change(found[column]).cast(found[column].type)
        pq.write_table(found.set_column(place, found.schema.field(place), changed), part)


def test_a_run_comes_out_equal_to_the_bit(study: Path) -> None:
    result = invoke("rerun", study, RUN)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{RUN} came out equal to the bit over 8 steps; rows compared: ")
    assert "steps 8, drift 48, freezes 4, events 3, evals 10" in result.stdout
    assert result.stderr.splitlines()[-1] == f"{RUN}: step 8/8"
    assert runs(study) == [RUN]


@pytest.mark.parametrize(
    ("table", "column", "change", "said"),
    [
        ("steps", "loss", lambda loss: pc.if_else(pc.greater(loss, 0.0), pc.add(loss, 1e-15), loss), "steps.loss, step 0: "),
        ("evals", "value", lambda value: pc.add(value, 0.5), "evals.value, step 2, split val, metric f1: "),
        (
            "events",
            "threshold",
            lambda tau: pa.chunked_array([pa.nulls(len(tau), tau.type)]),
            "events.threshold, step 2, event 0: None recorded, ",
        ),
        ("freezes", "group", lambda group: pc.add(group, 1), "freezes.rows, step 2, event 0, group "),
    ],
)
def test_what_differs_is_named_with_its_first_place(study: Path, table: str, column: str, change: Any, said: str) -> None:
    alter(study, table, column, change)
    result = invoke("rerun", study, RUN, "--quiet")
    assert (result.exit_code, result.stderr) == (1, "")
    first, second, *_ = result.stdout.splitlines()
    assert first == f"{RUN} came out otherwise than it was recorded (8 steps compared):"
    assert second.startswith(f"  {said}")
    assert "Versions and kind of machine are as recorded" in result.stdout


def test_other_versions_and_machines_are_named(study: Path) -> None:
    def older(column: pa.ChunkedArray) -> pa.ChunkedArray:
        environment = json.loads(column[0].as_py())
        environment["versions"]["torch"], environment["processor"] = "1.0.0", "AVX"
        return pa.chunked_array([[json.dumps(environment)]])

    alter(study, "runs", "environment_json", older)
    result = invoke("rerun", study, RUN, "--quiet", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["equal"]) == (0, True)
    changes = {change["name"]: change["recorded"] for change in document["environment"]}
    assert changes == {"versions.torch": "1.0.0", "processor": "AVX"}


def test_a_run_that_was_stopped_is_compared_as_far_as_it_came(study: Path) -> None:
    for table in ("steps", "drift", "events", "freezes", "evals"):
        for part in parts(study, table, RUN):
            found = pq.read_table(part)
            kept = pc.less_equal(found["step"], 4) if table == "evals" else pc.less(found["step"], 4)
            pq.write_table(found.filter(kept), part)
    shutil.rmtree(study / "records" / "ends")
    found = rerun(study, RUN, quiet=True)
    assert (found.is_equal, found.steps, found.rows["steps"]) == (True, 4, 4)
    assert found.notes == ["the recorded run had not ended yet or was killed; its repetition was compared with what there is"]


def test_a_run_that_diverges_again_is_equal_and_one_that_does_not_is_not(study: Path) -> None:
    train(study, "t0004-s0", trouble={"5": "nan"})
    found = rerun(study, "t0004-s0", quiet=True)
    assert (found.is_equal, found.steps) == (True, 5)
    assert "the repetition ended early: the training loss became NaN" in found.notes[0]
    alter(study, "ends", "status", lambda status: pa.chunked_array([["completed"]]), "t0004-s0")
    assert [str(each) for each in rerun(study, "t0004-s0", quiet=True).differences] == [
        "ends.status: 'completed' recorded, 'diverged' now (1 of 1 rows)"
    ]


def test_the_schedule_that_a_run_followed_is_followed_again(study: Path) -> None:
    job = tiny_job(study, "random_matched-s0", workers=1, policy="random_matched")
    run_local(job.model_copy(update={"follow": [(2, 1500), (4, 700)], "role": "baseline", "label": "random_matched"}))
    found = rerun(study, "random_matched-s0", quiet=True)
    assert found.is_equal
    assert found.rows["events"] == 2
    alter(study, "runs", "follow_json", lambda follow: pa.chunked_array([pa.nulls(1, follow.type)]), "random_matched-s0")
    with pytest.raises(InputError, match="followed a schedule that its records do not hold"):
        rerun(study, "random_matched-s0", quiet=True)


def test_a_repetition_can_be_kept_where_nothing_is_yet(study: Path, tmp_path: Path) -> None:
    assert invoke("rerun", study, RUN, "--quiet", "--out", tmp_path / "again").exit_code == 0
    kept = run_end(tmp_path / "again" / "tiny-rerun-t0003-s0", RUN)
    assert kept is not None
    assert kept.steps == 8
    again = invoke("rerun", study, RUN, "--out", tmp_path / "again")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "already holds a study" in again.stderr


def test_a_run_that_is_not_there_ends_with_1_and_one_message(study: Path) -> None:
    result = invoke("rerun", study, "t0009-s0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "has no records of a run t0009-s0; it has t0003-s0" in result.stderr
