import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fat_ray.analysis.read import DamagedError, Study, collect, open_studies, scan, table_schema, tolerantly
from fat_ray.errors import InputError, RecordError
from fat_ray.events import Eval
from fat_ray.records.compact import compact
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.place import place_of
from fat_ray.records.reader import run_start
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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three runs, two parts of steps each."""
    directory = tmp_path_factory.mktemp("read") / "study"
    write_study(directory, [FakeRun(f"t{trial:04d}-s0", trial=trial, steps=4) for trial in range(3)], spec=study_spec(steps=4))
    for run in ("t0000-s0", "t0001-s0", "t0002-s0"):
        sink = ParquetSink(directory, run, start=run_start(directory, run))
        sink.emit(run_step(4))
        sink.close()
    return directory


@pytest.fixture
def study(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "study")
    return tmp_path / "study"


def steps_of(studies: list[Study]) -> dict[str, list[int]]:
    found = collect(scan(studies, "steps"), studies).group_by("run", maintain_order=True).agg("step")
    return {run: list(steps) for run, steps in found.iter_rows()}


def read_tolerantly(directory: Path | str) -> tuple[dict[str, list[int]], list[str]]:
    """The steps of all runs that can be read, and what is said of the others."""
    said: list[str] = []

    def query(studies: list[Study]) -> dict[str, list[int]]:
        said[:] = [sentence for study in studies for sentence in study.damage]
        return steps_of(studies)

    return tolerantly(open_studies([directory]), query), said


def tear(part: Path) -> str:
    part.write_bytes(part.read_bytes()[:-9])
    return "is not a whole Parquet file"


def flip(part: Path) -> str:
    data = bytearray(part.read_bytes())
    data[60:90] = bytes(30)
    part.write_bytes(bytes(data))
    return "is not whole"


def lose(part: Path) -> str:
    part.unlink()
    return "is missing: part-00001.parquet is there"


def foreign(part: Path) -> str:
    pq.write_table(pa.table({"x": [1]}), part)
    return "fat_ray.table = nothing"


def newer(part: Path) -> str:
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"fat_ray.schema": b"2.0"}), part)
    return "has schema version 2.0"


def rename(part: Path) -> str:
    shutil.copy(part, part.with_name("part-copy.parquet"))
    return "its name has no number"


@pytest.mark.parametrize("damage", [tear, flip, lose, foreign, newer, rename])
def test_what_is_damaged_is_named_and_everything_else_is_read(study: Path, damage: Callable[[Path], str]) -> None:
    part = study / "records" / "steps" / "t0001-s0" / "part-00000.parquet"
    message = damage(part)
    found, said = read_tolerantly(study)
    assert found == {"t0000-s0": [0, 1, 2, 3, 4], "t0002-s0": [0, 1, 2, 3, 4]}
    (sentence,) = said
    assert sentence.startswith("Left out: t0001-s0. ")
    assert message in sentence
    assert str(part.parent) in sentence


@pytest.mark.parametrize("damage", [tear, flip])
def test_damage_of_a_compacted_file_names_its_runs_and_the_others_are_read(study: Path, damage: Callable[[Path], str]) -> None:
    compact(study, rows_per_file=4)  # one run each
    message = damage(study / "records" / "steps" / "compacted" / "part-00001.parquet")
    found, said = read_tolerantly(study)
    assert set(found) == {"t0000-s0", "t0002-s0"}
    (sentence,) = said
    assert sentence.startswith("Left out: t0001-s0. ")
    assert f"steps/compacted/part-00001.parquet {message}" in sentence


@pytest.mark.parametrize("table", ["steps", "runs", "ends"])
def test_a_compacted_file_that_is_missing_is_named_with_its_runs(study: Path, table: str) -> None:
    compact(study, rows_per_file=4)
    (study / "records" / table / "compacted" / "part-00001.parquet").unlink()
    studies = open_studies([study])
    with pytest.raises(DamagedError, match=rf"{table}/compacted/part-00001\.parquet is missing") as caught:
        scan(studies, table)
    assert [damage.runs for damage in caught.value.damage] == [{"t0001-s0"}]


def test_several_damaged_runs_are_told_at_once(study: Path) -> None:
    for run in ("t0000-s0", "t0001-s0"):
        tear(study / "records" / "steps" / run / "part-00000.parquet")
    with pytest.raises(DamagedError, match=r"part-00000\.parquet is not a whole .* \(and 1 more\)"):
        scan(open_studies([study]), "steps")
    found, said = read_tolerantly(study)
    assert (set(found), len(said)) == ({"t0002-s0"}, 2)


def test_compacted_records_are_read_as_before_also_half_compacted(study: Path) -> None:
    before = {table: rows_of(study, table) for table in TABLES}
    saved = study.with_name("saved")
    shutil.copytree(study, saved)
    compact(study)
    assert {table: rows_of(study, table) for table in TABLES} == before
    shutil.copytree(saved / "records", study / "records", dirs_exist_ok=True)  # as if it was killed before it removed the parts
    assert {table: rows_of(study, table) for table in TABLES} == before


def rows_of(directory: Path, table: str) -> list[str]:
    studies = open_studies([directory])
    return sorted(map(repr, collect(scan(studies, table), studies).iter_rows()))


def test_rows_after_a_compaction_count_as_the_later_ones(study: Path) -> None:
    compact(study)
    sink = ParquetSink(study, "t0001-s0", start=run_start(study, "t0001-s0"))
    for event in (replace(run_step(4), loss=9.0), run_step(5)):
        sink.emit(event)
    sink.close()
    assert steps_of(open_studies([study])) == {"t0000-s0": [0, 1, 2, 3, 4], "t0002-s0": [0, 1, 2, 3, 4], "t0001-s0": [0, 1, 2, 3, 4, 5]}
    studies = open_studies([study])
    assert collect(scan(studies, "steps").filter(run="t0001-s0", step=4), studies)["loss"].to_list() == [9.0]


def test_a_compaction_between_scan_and_answer_goes_unnoticed(study: Path) -> None:
    calls = []

    def query(studies: list[Study]) -> dict[str, list[int]]:
        frame = scan(studies, "steps")
        if not calls:
            compact(study)
        calls.append(len(calls))
        return {run: list(steps) for run, steps in collect(frame, studies).group_by("run").agg("step").iter_rows()}

    assert set(tolerantly(open_studies([study]), query)) == {"t0000-s0", "t0001-s0", "t0002-s0"}
    assert len(calls) == 2


def elsewhere(directory: Path, uri: str) -> str:
    """A copy of a study on another file system."""
    place = place_of(uri)
    for path in directory.rglob("*"):
        if path.is_file():
            place.write(str(path.relative_to(directory)), path.read_bytes())
    return uri


@pytest.mark.parametrize("gathered", [False, True])
def test_a_study_on_another_file_system_is_read_as_a_local_one(study: Path, gathered: bool, request: pytest.FixtureRequest) -> None:
    if gathered:
        compact(study)
    uri = elsewhere(study, f"fsspec+memory://{request.node.name}/study")
    here, there = open_studies([study]), open_studies([uri])
    for table in TABLES:
        assert collect(scan(here, table), here).equals(collect(scan(there, table), there)), table
    narrow = scan(there, "steps").filter((pl.col("run") == "t0001-s0") & (pl.col("step") > 2)).select("step", "loss").head(1)
    assert collect(narrow, there).rows() == [(3, pytest.approx(collect(scan(here, "steps").filter(step=3), here)["loss"][0]))]
    assert (there[0].directory, there[0].text) == (uri, here[0].text)


def test_damage_on_another_file_system_is_named_by_its_uri(study: Path) -> None:
    flip(study / "records" / "steps" / "t0001-s0" / "part-00000.parquet")
    uri = elsewhere(study, "fsspec+memory://damaged/study")
    found, said = read_tolerantly(uri)
    assert set(found) == {"t0000-s0", "t0002-s0"}
    assert f"{uri}/records/steps/t0001-s0/part-00000.parquet" in said[0]


def test_single_runs_are_chosen_by_name(study: Path) -> None:
    assert [one.chosen for one in open_studies([study / "t0001-s0", f"{study}/t0002-s0"])] == [{"t0001-s0", "t0002-s0"}]
    assert [one.chosen for one in open_studies([study / "t0001-s0", study])] == [None]
    compact(study)
    assert [one.chosen for one in open_studies([study / "t0001-s0"])] == [{"t0001-s0"}]
    with pytest.raises(InputError, match=r"t0009-s0: the study in .*study has no run t0009-s0; it has t0000-s0, t0001-s0, t0002-s0"):
        open_studies([study / "t0009-s0"])
