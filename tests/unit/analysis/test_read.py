import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fat_ray.analysis.read import collect, open_studies, scan, table_schema
from fat_ray.errors import RecordError
from fat_ray.records.schema import TABLES
from tests.support.studies import FakeRun, study_spec, write_study


def _empty_study(directory: Path, **manifest: object) -> Path:
    directory.mkdir()
    (directory / "study.json").write_text(json.dumps({"name": "empty", "schema_version": "1.0", "spec": {}, **manifest}))
    return directory


def test_a_directory_without_a_study_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"{tmp_path} is not a study: it has no study.json"):
        open_studies([tmp_path])


def test_a_newer_major_version_is_refused_and_a_newer_minor_is_read(tmp_path: Path) -> None:
    newer = _empty_study(tmp_path / "major", schema_version="2.0")
    with pytest.raises(RecordError, match=r"schema version 2\.0, this fat_ray reads up to 1"):
        open_studies([newer])
    assert open_studies([_empty_study(tmp_path / "minor", schema_version="1.9")])[0].key == "empty"


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ("[]", "lacks name, schema_version, spec"), ('{"name": 1, "spec": {}}', "lacks schema_version")],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(RecordError, match=said):
        open_studies([tmp_path])


def test_a_version_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="schema_version = 'new' is not a version"):
        open_studies([_empty_study(tmp_path / "a", schema_version="new")])


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
    pq.write_table(pa.table({"later": [1], "step": pa.array([7], pa.int32()), "run": ["r"]}), part)
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


def test_studies_of_one_name_are_told_apart_and_one_directory_is_read_once(tmp_path: Path) -> None:
    first, second = _empty_study(tmp_path / "a"), _empty_study(tmp_path / "b")
    assert [s.key for s in open_studies([first, second, first / ".." / "a"])] == [f"empty ({first})", f"empty ({second})"]
    assert [s.key for s in open_studies([first, first])] == ["empty"]
