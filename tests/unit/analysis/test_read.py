import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fat_ray.analysis.read import collect, open_studies, scan, table_schema
from fat_ray.errors import RecordError
from fat_ray.events import Eval
from fat_ray.records.schema import TABLES
from tests.support.runs import step as run_step
from tests.support.studies import FakeRun, small_groups, start_of, study_spec, write_events, write_study

pytestmark = pytest.mark.timeout(10)  # writes and reads real records: a fifth of a second, more where many processes share the disk


def _empty_study(directory: Path, **manifest: object) -> Path:
    write_study(directory, [], spec=study_spec("empty"))
    path = directory / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **manifest}))
    return directory


def test_a_directory_without_a_study_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"{tmp_path} holds no study"):
        open_studies([tmp_path])


def test_a_newer_major_version_is_refused_and_a_newer_minor_is_read(tmp_path: Path) -> None:
    newer = _empty_study(tmp_path / "major", schema_version="2.0")
    with pytest.raises(RecordError, match=r"schema version 2\.0, this program reads up to 1"):
        open_studies([newer])
    assert open_studies([_empty_study(tmp_path / "minor", schema_version="1.9")])[0].key == "empty"


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_nobody_wrote_is_empty_with_its_columns(tmp_path: Path, table: str) -> None:
    studies = open_studies([_empty_study(tmp_path / "a")])
    frame = collect(scan(studies, table), studies)
    expected = {"study": pl.String, **{name: kind for name, kind in table_schema(table).items() if name != "study"}}
    assert frame.is_empty()
    assert dict(frame.schema) == expected


def test_columns_of_a_newer_minor_are_ignored_and_missing_ones_are_null(tmp_path: Path) -> None:
    study = _empty_study(tmp_path / "a", schema_version="1.1")
    part = study / "records" / "steps" / "r" / "part-00000.parquet"
    part.parent.mkdir(parents=True)
    rows = pa.table({"later": [1], "step": pa.array([7], pa.int32()), "run": ["r"]})
    pq.write_table(rows.replace_schema_metadata({"fat_ray.schema": "1.1", "fat_ray.table": "steps"}), part)
    studies = open_studies([study])
    assert collect(scan(studies, "steps"), studies).select("run", "step", "loss").rows() == [("r", 7, None)]


def test_a_torn_file_is_named_and_a_temporary_one_is_not_seen(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", [FakeRun("r", steps=2)], spec=study_spec(steps=4))
    folder = study / "records" / "steps" / "r"
    (folder / "part-00001.parquet.tmp").write_bytes(b"half")
    studies = open_studies([study])
    assert collect(scan(studies, "steps"), studies).height == 2
    (folder / "part-00001.parquet").write_bytes(b"half")
    with pytest.raises(RecordError, match=r"steps/r/part-00001.parquet"):
        collect(scan(studies, "steps"), studies)


@pytest.mark.parametrize(
    ("run", "metadata", "message"),
    [
        ("r", {"fat_ray.schema": "2.0", "fat_ray.table": "steps"}, r"schema version 2\.0, this program reads up to 1"),
        ("r", {"fat_ray.table": "steps"}, "no schema version"),
        ("r", {}, "fat_ray.table = nothing"),
        ("r", {"fat_ray.schema": "1.0", "fat_ray.table": "evals"}, "fat_ray.table = evals"),
        ("other", {"fat_ray.schema": "1.0", "fat_ray.table": "steps"}, "rows of another run than r"),
    ],
)
def test_a_newer_or_foreign_part_is_refused_by_name(tmp_path: Path, run: str, metadata: dict[str, str], message: str) -> None:
    study = write_study(tmp_path / "a", [FakeRun("r", steps=2)], spec=study_spec(steps=4))
    studies = open_studies([study])
    assert collect(scan(studies, "steps"), studies).height == 2
    part = study / "records" / "steps" / "r" / "part-00001.parquet"
    rows = pa.table({"run": [run], "step": pa.array([7], pa.int32())})
    pq.write_table(rows.replace_schema_metadata(metadata), part)
    with pytest.raises(RecordError, match=rf"steps/r/part-00001\.parquet.*{message}"):
        scan(studies, "steps")


def test_studies_of_one_name_are_told_apart_and_one_directory_is_read_once(tmp_path: Path) -> None:
    first, second = _empty_study(tmp_path / "a"), _empty_study(tmp_path / "b")
    assert [s.key for s in open_studies([first, second, first / ".." / "a"])] == [f"empty ({first})", f"empty ({second})"]
    assert [s.key for s in open_studies([first, first])] == ["empty"]


def test_a_run_that_was_started_again_counts_once_with_its_later_rows(tmp_path: Path) -> None:
    run, spec, groups = FakeRun("r", steps=6, f1=0.5), study_spec(steps=8), small_groups()
    study = write_study(tmp_path / "a", [run], spec=spec, groups=groups)
    start = start_of(run, spec, groups)
    again = replace(run_step(2), loss=9.0)
    write_events(study, start, [again, Eval(0, "val", {"f1": 0.25}, 0.1)])
    studies = open_studies([study])
    steps = collect(scan(studies, "steps"), studies)
    assert steps["step"].to_list() == [0, 1, 3, 4, 5, 2]
    assert steps.filter(step=2)["loss"].to_list() == [9.0]
    assert collect(scan(studies, "evals"), studies).filter(step=0, split="val", metric="f1")["value"].to_list() == [0.25]
    assert collect(scan(studies, "groups"), studies).height == len(groups)
    assert collect(scan(studies, "runs"), studies).height == 1
