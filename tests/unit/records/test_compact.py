import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fat_ray.errors import OutputError, RecordError
from fat_ray.events import Status
from fat_ray.records import compact as compaction
from fat_ray.records.catalogue import survey
from fat_ray.records.compact import compact
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.place import place_of
from fat_ray.records.reader import next_part, parts, read_table, run_end, run_start, runs
from fat_ray.records.schema import TABLES
from tests.support.runs import end, start, step, write_run

pytestmark = pytest.mark.timeout(20)  # writes and reads tens of small files

DONE = ["t0001-s0", "t0002-s0", "t0003-s0"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that ended for good, one that failed, one that still runs."""
    directory = tmp_path_factory.mktemp("written")
    for run, status in zip(DONE, (Status.COMPLETED, Status.PRUNED, Status.DIVERGED), strict=True):
        write_run(directory, run, ended=end(status, "" if status is Status.COMPLETED else "why"))
    write_run(directory, "t0004-s0", ended=end(Status.FAILED, "worker lost"))
    sink = ParquetSink(directory, "t0005-s0")
    for event in (start("t0005-s0"), step(0)):
        sink.emit(event)
    sink.flush()
    return directory


@pytest.fixture
def study(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "study")
    return tmp_path / "study"


def content(directory: Path) -> dict[tuple[str, str], str]:
    return {(table, run): repr(read_table(directory, table, run).to_pylist()) for table in TABLES for run in runs(directory)}


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory / "records")) for path in (directory / "records").rglob("*") if path.is_file())


def test_every_row_is_found_as_before_in_one_file_per_table(study: Path) -> None:
    before, number = content(study), len(files(study))
    done = compact(study)
    assert content(study) == before
    assert done.runs == DONE
    assert done.num_files == (number, len(files(study)))
    assert done.kept == {"t0004-s0": "failed: it may go on", "t0005-s0": "has not ended"}
    gathered = [file for file in files(study) if "t0004" not in file and "t0005" not in file]
    assert gathered == sorted(f"{table}/compacted/part-00000.parquet" for table in TABLES)
    sizes = [f"{size / 2**20:.1f} MiB" for size in done.num_bytes]
    assert str(done) == f"3 runs gathered: {number} files of {sizes[0]} became {len(files(study))} files of {sizes[1]}"


def test_start_and_end_come_back_from_a_compacted_file(study: Path) -> None:
    compact(study)
    assert run_start(study, DONE[0]) == start(DONE[0])
    assert run_end(study, DONE[0]) == end()
    assert runs(study) == [*DONE, "t0004-s0", "t0005-s0"]


def test_a_run_without_rows_in_a_table_has_no_file_there(tmp_path: Path) -> None:
    write_run(tmp_path, "t0001-s0")
    sink = ParquetSink(tmp_path, "t0002-s0")
    for event in (start("t0002-s0"), step(0), end()):
        sink.emit(event)
    sink.close()
    compact(tmp_path)
    assert [len(parts(tmp_path, "drift", run)) for run in ("t0001-s0", "t0002-s0")] == [1, 0]
    assert read_table(tmp_path, "drift", "t0002-s0").num_rows == 0


def test_again_it_does_nothing(study: Path) -> None:
    compact(study)
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*.parquet")}
    assert compact(study).runs == []
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*.parquet")} == before


def test_runs_that_end_later_come_into_a_file_of_their_own(study: Path) -> None:
    compact(study)
    sink = ParquetSink(study, "t0005-s0", start=start("t0005-s0"))
    sink.emit(end())
    sink.close()
    before = content(study)
    assert compact(study).runs == ["t0005-s0"]
    assert content(study) == before
    assert [file for file in files(study) if file.startswith("ends/compacted")] == [f"ends/compacted/part-0000{n}.parquet" for n in (0, 1)]


def test_batches_are_closed_when_they_are_large_enough_and_hold_the_same_runs_in_all_tables(study: Path) -> None:
    before = content(study)
    compact(study, rows_per_file=10)  # drift and steps have less than 10 rows per run
    assert content(study) == before
    held = {table: [_runs_of(path) for path in sorted((study / "records" / table / "compacted").iterdir())] for table in TABLES}
    assert set(map(str, held.values())) == {str([[DONE[0]], [DONE[1]], [DONE[2]]])}


def _runs_of(path: Path) -> list[str]:
    return list(json.loads(pq.read_metadata(path).metadata[b"fat_ray.runs"]))


def test_rows_of_repeated_starts_are_kept_once(tmp_path: Path) -> None:
    write_run(tmp_path, ended=end(Status.FAILED, "worker lost"))
    write_run(tmp_path)  # as version 1.0 did it
    assert len(read_table(tmp_path, "steps", "t0003-s0")) == 10
    compact(tmp_path)
    assert sorted(read_table(tmp_path, "steps", "t0003-s0")["step"].to_pylist()) == [0, 1, 2, 3, 4]
    assert run_end(tmp_path, "t0003-s0") == end()
    assert run_start(tmp_path, "t0003-s0") == start()


class Killed(BaseException):
    """What stands in for SIGKILL: nothing catches it but to clean up a temporary file."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Ends the process at the n-th change of the disk."""
    changes = {"left": -1}

    def counted(real: object) -> object:
        def change(*args: object, **kwargs: object) -> object:
            if changes["left"] == 0:
                raise Killed
            changes["left"] -= 1
            return real(*args, **kwargs)

        return change

    for name in ("replace", "unlink", "rmdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))

    def arm(number: int) -> None:
        changes["left"] = number

    return arm


@pytest.mark.parametrize("number", [0, 1, 4, 8, 9, 10, 15, 30, 50])
def test_killed_at_any_moment_it_loses_nothing_and_goes_on(study: Path, kill_at: object, number: int) -> None:
    before = content(study)
    kill_at(number)
    with pytest.raises(Killed):
        compact(study)
    kill_at(-1)
    assert content(study) == before
    compact(study)
    assert content(study) == before
    assert not [file for file in files(study) if any(run in file for run in DONE)]
    assert not list(study.rglob("*.tmp"))


def test_beside_a_driver_it_is_refused(study: Path) -> None:
    before = files(study)
    (study / "control").mkdir()
    with (study / "control" / "driver.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is at work"):
            compact(study)
    assert files(study) == before


def test_a_full_disk_is_said_and_nothing_is_lost(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        if "drift" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = content(study)
    monkeypatch.setattr(compaction, "sync", fail)
    with pytest.raises(RecordError, match=r"cannot write .*drift/compacted.*No space left on device: .* MiB free.*nothing is lost"):
        compact(study)
    assert content(study) == before
    assert not list(study.rglob("*.tmp"))


def test_too_little_space_is_said_before_anything_is_written(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(study)
    monkeypatch.setattr(compaction, "free_bytes", lambda path: 1000)
    with pytest.raises(RecordError, match=r"too little space to compact .*: 0\.0 MiB free"):
        compact(study)
    assert files(study) == before


def test_a_damaged_run_stays_as_it_is_and_is_named(study: Path) -> None:
    torn = study / "records" / "steps" / DONE[1] / "part-00001.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    done = compact(study)
    assert done.runs == [DONE[0], DONE[2]]
    assert str(torn) in done.kept[DONE[1]]


def test_a_compacted_run_gets_no_number_again_and_takes_nothing_back(study: Path) -> None:
    assert next_part(study, "steps", DONE[0]) == 2
    compact(study)
    assert next_part(study, "steps", DONE[0]) == 2
    sink = ParquetSink(study, DONE[0])
    assert sink.position()["steps"] == 2
    assert sink.reaches({"steps": 2})
    with pytest.raises(RecordError, match="compacted: nothing of them can be taken back"):
        sink.rewind({"steps": 1})


def test_rows_that_come_after_a_compaction_are_read_after_it(study: Path) -> None:
    compact(study)
    sink = ParquetSink(study, DONE[0], start=start(DONE[0]))
    sink.emit(step(5))
    sink.flush()
    assert read_table(study, "steps", DONE[0])["step"].to_pylist() == [0, 1, 2, 3, 4, 5]


def test_a_compacted_file_that_is_torn_is_named_where_its_runs_are_read(study: Path) -> None:
    compact(study)
    torn = study / "records" / "steps" / "compacted" / "part-00000.parquet"
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(RecordError, match=r"steps/compacted/part-00000\.parquet is not a whole Parquet file"):
        read_table(study, "steps", DONE[0])
    assert len(read_table(study, "evals", DONE[0])) > 0
    assert len(read_table(study, "steps", "t0004-s0")) == 5


def test_a_compacted_file_that_is_missing_is_named(study: Path) -> None:
    compact(study)
    (study / "records" / "runs" / "compacted" / "part-00000.parquet").unlink()
    with pytest.raises(RecordError, match=r"runs/compacted/part-00000\.parquet is missing"):
        read_table(study, "runs", DONE[0])
    compact(study)  # has nothing to make it from
    with pytest.raises(RecordError, match="is missing"):
        run_start(study, DONE[0])


def test_foreign_files_among_compacted_ones_are_refused(study: Path) -> None:
    compact(study)
    path = study / "records" / "steps" / "compacted" / "part-00001.parquet"
    pq.write_table(pa.table({"run": [DONE[0]]}).replace_schema_metadata({"fat_ray.schema": "1.1", "fat_ray.table": "steps"}), path)
    assert len(read_table(study, "steps", DONE[0])) == 5  # found in the whole one
    (damage,) = survey(place_of(study), "steps").damage
    assert damage.message == f"{path} is not a compacted file: its metadata has no fat_ray.runs"
    assert damage.runs == set()
