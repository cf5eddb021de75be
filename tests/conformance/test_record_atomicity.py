"""Writers that are killed and disks that fill, for real: readers never see half a record."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

import fat_ray
from fat_ray.analysis.read import collect, open_studies, scan, tolerantly
from fat_ray.errors import OutputError, RecordError
from fat_ray.records.compact import compact
from fat_ray.records.manifest import create_study
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.reader import parts, read_table, run_end, run_start, runs
from fat_ray.records.schema import TABLES
from fat_ray.spec.study import StudySpec
from tests.support.runs import GROUPS, end, start, step, write_run

pytestmark = pytest.mark.timeout(120)

RUN = "t0003-s0"
KILLS = 12
STEPS_PER_FLUSH = 50
# Each attempt starts the run again and then flushes 50 steps at a time, for ever. The loss of a step is the number of its flush. Every file
# is written in two halves with a pause between them, so that most kills and reads fall into the middle of a write.
WRITER = f"""
import itertools, sys, time
from fat_ray.records import files
from fat_ray.records.parquet import ParquetSink
from tests.support.runs import start, step

def write_slowly(path, data):
    with path.open("wb", buffering=0) as file:
        file.write(data[:len(data) // 2])
        time.sleep(0.02)
        file.write(data[len(data) // 2:])

files.write_synced = write_slowly
sink = ParquetSink(sys.argv[1], {RUN!r})
sink.emit(start())
sink.flush()
print("started", flush=True)
for flush in itertools.count():
    for number in range({STEPS_PER_FLUSH}):
        sink.emit(step(flush * {STEPS_PER_FLUSH} + number, loss=float(flush)))
    sink.flush()
"""


def spawn_writer(directory: Path) -> subprocess.Popen[str]:
    return spawn(WRITER, directory)


def spawn(program: str, directory: Path) -> subprocess.Popen[str]:
    root = str(Path(fat_ray.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen([sys.executable, "-c", program, str(directory)], env=environment, cwd=root, stdout=subprocess.PIPE, text=True)


def read_while_it_runs(directory: Path, seconds: float) -> int:
    """Reads in a loop, checks that every flush is seen whole and in order, and returns the number of reads."""
    reads = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        table = read_table(directory, "steps", RUN)
        assert len(table) % STEPS_PER_FLUSH == 0
        flushes = table["loss"].to_pylist()
        assert all(len(set(flushes[at : at + STEPS_PER_FLUSH])) == 1 for at in range(0, len(flushes), STEPS_PER_FLUSH))
        assert run_start(directory, RUN) == start()
        assert run_end(directory, RUN) is None
        reads += 1
    return reads


def test_writers_killed_at_any_moment_leave_whole_records_that_the_next_continues(tmp_path: Path) -> None:
    interrupted = 0
    for attempt in range(KILLS):
        writer = spawn_writer(tmp_path)
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "started\n"
            assert read_while_it_runs(tmp_path, 0.1 + 0.037 * attempt) > 0
        finally:
            writer.kill()
            writer.communicate()
        assert len(read_table(tmp_path, "runs", RUN)) == attempt + 1
        interrupted += len(list((tmp_path / "records").rglob("*.tmp")))
        if attempt and interrupted:
            break
    assert interrupted, "no kill fell into a write"
    numbers = [int(part.stem.removeprefix("part-")) for part in parts(tmp_path, "steps", RUN)]
    assert numbers == list(range(len(numbers)))
    steps = read_table(tmp_path, "steps", RUN)["step"].to_pylist()
    assert all(later in (earlier + 1, 0) for earlier, later in pairwise(steps))
    assert pl.scan_parquet(tmp_path / "records/steps/*/part-*.parquet").select(pl.len()).collect().item() == len(steps)


# Each file of a compaction takes its time in the middle, and so does each part that is removed.
COMPACTION = """
import sys, time
from pathlib import Path
from fat_ray.records import compact

def slowly(real):
    def run(*arguments, **options):
        time.sleep(0.003)
        result = real(*arguments, **options)
        time.sleep(0.003)
        return result
    return run

compact.sync = slowly(compact.sync)
Path.replace, Path.unlink = slowly(Path.replace), slowly(Path.unlink)
print("started", flush=True)
compact.compact(sys.argv[1], rows_per_file=12)
"""


def rows_of(directory: Path) -> dict[str, list[str]]:
    """All rows, as the comparison reads them."""
    studies = open_studies([directory])
    return {table: sorted(map(repr, collect(scan(studies, table), studies).iter_rows())) for table in ("runs", "steps", "evals", "ends")}


def test_readers_beside_a_compaction_that_is_killed_again_and_again_find_each_row_once(tmp_path: Path) -> None:
    create_study(tmp_path / "quick", StudySpec(name="quick"), "name: quick\n", min_free_bytes=0)
    names = [f"t{trial:04d}-s0" for trial in range(4)]
    for run in names:
        write_run(tmp_path / "quick", run)
    before = rows_of(tmp_path / "quick")
    kills = 0
    while any((tmp_path / "quick" / "records" / table / run).exists() for table in TABLES for run in names):
        compaction = spawn(COMPACTION, tmp_path / "quick")
        try:
            assert compaction.stdout is not None
            assert compaction.stdout.readline() == "started\n"
            until = time.monotonic() + (0.1 + 0.1 * kills if kills < 3 else 30)
            while compaction.poll() is None and time.monotonic() < until:
                assert tolerantly(open_studies([tmp_path / "quick"]), lambda _: rows_of(tmp_path / "quick")) == before
                assert len(read_table(tmp_path / "quick", "steps", names[-1])) == 5
        finally:
            kills += compaction.poll() is None
            compaction.kill()
            compaction.communicate()
        assert rows_of(tmp_path / "quick") == before
    assert kills > 1
    assert runs(tmp_path / "quick") == names
    compact(tmp_path / "quick")  # what the last kill left behind
    assert list((tmp_path / "quick").rglob("*.tmp")) == []
    assert rows_of(tmp_path / "quick") == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None:
        pytest.skip("no mount command")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([unmount, str(place)], check=True)


def fill(sink: ParquetSink) -> None:
    """Flushes blocks of steps until it fails; the loss of a step is its position in the run over 7."""
    for flush in range(1000):
        for number in range(STEPS_PER_FLUSH):
            sink.emit(step(number, loss=(flush * STEPS_PER_FLUSH + number) / 7))
        sink.flush()


def test_a_disk_that_really_fills_is_said_and_what_was_written_stays_whole(small_disk: Path) -> None:
    sink = ParquetSink(small_disk, RUN)
    sink.emit(start())
    sink.flush()
    with pytest.raises(RecordError, match=r"cannot write .*steps.*No space left on device: \d\.\d MiB free"):
        fill(sink)
    written = len(read_table(small_disk, "steps", RUN))
    assert written > 3 * STEPS_PER_FLUSH
    assert list(small_disk.rglob("*.tmp")) == []

    for part in parts(small_disk, "steps", RUN)[:3]:  # someone makes space
        part.unlink()
    sink.emit(end())
    sink.close()
    losses = read_table(small_disk, "steps", RUN)["loss"].to_pylist()
    assert losses == [number / 7 for number in range(3 * STEPS_PER_FLUSH, written + STEPS_PER_FLUSH)]
    assert run_end(small_disk, RUN) == end()
    assert list(run_start(small_disk, RUN).groups) == GROUPS


def test_a_study_on_a_disk_without_space_is_refused_with_the_numbers(small_disk: Path) -> None:
    with pytest.raises(OutputError, match=r"0\.2 MiB free, a study needs at least 64\.0 MiB"):
        create_study(small_disk / "quick", StudySpec(name="quick"), "name: quick\n")
    (small_disk / "ballast").write_bytes(bytes(255 * 1024 - 4096))
    with pytest.raises(OutputError, match="No space left on device"):
        create_study(small_disk / "quick", StudySpec(name="quick"), "name: quick\n", min_free_bytes=0)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    assert runs(small_disk) == []
