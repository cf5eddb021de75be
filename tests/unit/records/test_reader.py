from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fat_ray.errors import RecordError
from fat_ray.records.metrics import TABLES_SHOWN, metric_rows, summary_values
from fat_ray.records.reader import parts, read_table, run_end, run_start, runs
from fat_ray.records.schema import TABLES
from tests.support.runs import end, start, write_run

RUN = "t0003-s0"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    write_run(tmp_path)
    return tmp_path / "records" / "steps" / RUN / "part-00000.parquet"


def rewrite(part: Path, *, metadata: dict[str, str] | None = None, table: pa.Table | None = None) -> None:
    found = table if table is not None else pq.read_table(part)
    pq.write_table(found.replace_schema_metadata({**found.schema.metadata, **{k.encode(): v for k, v in (metadata or {}).items()}}), part)


def refused(directory: Path, part: Path, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        read_table(directory, "steps", RUN)
    assert str(part) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 4, 100, -9, -1])
def test_a_torn_file_is_named(tmp_path: Path, part: Path, kept: int) -> None:
    part.write_bytes(part.read_bytes()[:kept])
    refused(tmp_path, part, "not a whole Parquet file")


def test_no_flipped_bit_in_the_data_changes_a_value(tmp_path: Path, part: Path) -> None:
    whole = part.read_bytes()
    before = repr(read_table(tmp_path, "steps", RUN).to_pylist())
    outcomes = Counter()
    for position in range(4, 400, 9):
        part.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            outcomes[repr(read_table(tmp_path, "steps", RUN).to_pylist()) == before] += 1
        except RecordError as error:
            outcomes[str(part) in str(error)] += 1
    assert outcomes == {True: 44}


def test_a_parquet_file_of_others_is_refused(tmp_path: Path, part: Path) -> None:
    pq.write_table(pa.table({"run": [RUN], "step": [1]}), part)
    refused(tmp_path, part, "fat_ray.table = nothing")


def test_a_part_of_another_table_is_refused(tmp_path: Path, part: Path) -> None:
    part.write_bytes((tmp_path / "records" / "evals" / RUN / part.name).read_bytes())
    refused(tmp_path, part, "fat_ray.table = evals")


def test_a_part_of_another_run_is_refused(tmp_path: Path, part: Path) -> None:
    write_run(tmp_path, "t0004-s0")
    part.write_bytes((tmp_path / "records" / "steps" / "t0004-s0" / part.name).read_bytes())
    refused(tmp_path, part, "another run than t0003-s0")


def test_a_newer_major_version_is_refused(tmp_path: Path, part: Path) -> None:
    rewrite(part, metadata={"fat_ray.schema": "2.0"})
    refused(tmp_path, part, r"schema version 2\.0, this program reads up to 1\.2")


def test_no_version_is_refused(tmp_path: Path, part: Path) -> None:
    rewrite(part, metadata={"fat_ray.schema": ""})
    refused(tmp_path, part, "no schema version")


def test_columns_of_a_newer_minor_version_are_left_out(tmp_path: Path, part: Path) -> None:
    before = repr(read_table(tmp_path, "steps", RUN).to_pylist())
    table = pq.read_table(part)
    rewrite(part, metadata={"fat_ray.schema": "1.7"}, table=table.append_column("joules", pa.array([1.0] * len(table))))
    assert repr(read_table(tmp_path, "steps", RUN).to_pylist()) == before
    assert read_table(tmp_path, "steps", RUN).schema == TABLES["steps"]


def test_a_column_that_an_older_minor_version_lacks_is_null(tmp_path: Path, part: Path) -> None:
    rewrite(part, table=pq.read_table(part).drop_columns(["grad_norm"]))
    assert read_table(tmp_path, "steps", RUN)["grad_norm"].to_pylist() == [None, None, None, 0.25, 0.25]


SINCE_1_1 = {
    "steps": ["flops_forward", "flops_input_gradient", "flops_weight_gradient", "comm_bytes", "optimizer_bytes", "peak_memory_bytes"],
    "ends": ["comm_bytes", "optimizer_bytes", "peak_memory_bytes"],
}


def test_records_of_version_1_0_are_read_and_do_not_say_what_they_cannot_know(tmp_path: Path) -> None:
    write_run(tmp_path)
    for part in (tmp_path / "records").rglob("*.parquet"):
        table = pq.read_table(part).drop_columns(SINCE_1_1.get(part.parent.parent.name, []))
        rewrite(part, metadata={"fat_ray.schema": "1.0"}, table=table)
    assert run_start(tmp_path, RUN) == start()
    assert run_end(tmp_path, RUN) == replace(end(), comm_bytes=None, optimizer_bytes=None, peak_memory_bytes=None)
    shown = metric_rows({table: read_table(tmp_path, table, RUN) for table in TABLES_SHOWN}, 481)
    assert [row["perf/flops"] for row in shown if "perf/flops" in row] == [1e9] * 5
    assert not any(f"perf/{name}" in row for row in shown for name in SINCE_1_1["steps"])
    assert not any(f"cost/{name}" in summary_values(run_end(tmp_path, RUN)) for name in SINCE_1_1["ends"])


def test_a_column_of_another_type_is_refused(tmp_path: Path, part: Path) -> None:
    table = pq.read_table(part)
    position = table.schema.get_field_index("loss")
    rewrite(part, table=table.set_column(position, "loss", pa.array(["low"] * len(table))))
    refused(tmp_path, part, "another type")


def test_other_files_do_not_exist_for_a_reader(tmp_path: Path, part: Path) -> None:
    for name in (".part-00009.parquet.tmp", "part-00009.parquet.tmp", "notes.txt", "part-00009.csv"):
        (part.parent / name).write_bytes(b"half")
    assert len(read_table(tmp_path, "steps", RUN)) == 5


def test_a_part_without_a_number_is_refused(tmp_path: Path, part: Path) -> None:
    part.rename(part.with_name("part-copy.parquet"))
    refused(tmp_path, part.with_name("part-copy.parquet"), "no number")


def test_parts_are_read_by_number_beyond_five_digits(tmp_path: Path, part: Path) -> None:
    part.rename(part.with_name("part-100000.parquet"))
    assert [path.name for path in parts(tmp_path, "steps", RUN)] == ["part-00001.parquet", "part-100000.parquet"]
    assert read_table(tmp_path, "steps", RUN)["step"].to_pylist() == [3, 4, 0, 1, 2]


def test_what_is_not_there_yet_is_empty_but_an_unknown_run_has_no_start(tmp_path: Path, part: Path) -> None:
    assert read_table(tmp_path, "steps", "none-s0").schema == TABLES["steps"]
    assert len(read_table(tmp_path, "steps", "none-s0")) == 0
    assert run_end(tmp_path, "none-s0") is None
    with pytest.raises(RecordError, match=r"no records of a run none-s0; it has t0003-s0"):
        run_start(tmp_path, "none-s0")
    assert runs(tmp_path / "elsewhere") == []
