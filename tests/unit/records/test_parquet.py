import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest

from fat_ray.errors import RecordError
from fat_ray.events import Drift, Eval, Freeze, GroupInfo, Status, Step
from fat_ray.records import files
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.reader import part_number, parts, read_table, run_end, run_start, runs
from fat_ray.records.schema import TABLES
from tests.support.runs import GROUPS, body, end, resumption, start, step, write_run

RUN = "t0003-s0"


def rows(directory: Path, table: str) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "run"} for row in read_table(directory, table, RUN).to_pylist()]


def _as_row(step: Step) -> dict[str, object]:
    """In the order of the columns, without the sum."""
    values = {**vars(step), "flops": None}
    return {name: values[name] for name in TABLES["steps"].names if name != "run"}


def all_files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_start_and_end_come_back_as_they_were(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert run_start(tmp_path, RUN) == start()
    assert run_end(tmp_path, RUN) == end()
    assert runs(tmp_path) == [RUN]


def test_every_event_comes_back(tmp_path: Path) -> None:
    write_run(tmp_path)
    steps = [event for event in body() if isinstance(event, Step)]
    assert repr([{**row, "flops": None} for row in rows(tmp_path, "steps")]) == repr([_as_row(step) for step in steps])
    assert [row["flops"] for row in rows(tmp_path, "steps")] == [step.flops for step in steps]
    evals = [(row["step"], row["split"], row["metric"], row["value"], row["eval_s"]) for row in rows(tmp_path, "evals")]
    expected = [(e.step, e.split, m, v, e.eval_s) for e in body() if isinstance(e, Eval) for m, v in e.metrics.items()]
    assert repr(evals) == repr(expected)
    drift = [tuple(row.values()) for row in rows(tmp_path, "drift")]
    assert drift == [
        (e.step, e.update, group, e.distance[group], e.noise[group], e.smoothed[group], e.score[group], e.active[group])
        for e in body()
        if isinstance(e, Drift)
        for group in range(len(GROUPS))
    ]
    decisions = [event for event in body() if isinstance(event, Freeze)]
    expected_events = [{n: v for n, v in vars(e).items() if n != "frozen"} | {"frozen_groups": len(e.frozen)} for e in decisions]
    assert rows(tmp_path, "events") == expected_events
    assert rows(tmp_path, "freezes") == [{"step": 2, "event": 1, "group": 2, "elements": 32}]


def test_final_metrics_that_are_not_finite_come_back(tmp_path: Path) -> None:
    ended = end(Status.DIVERGED, "loss is nan", {"val/loss": float("nan"), "val/x": float("-inf"), "val/f1": 0.5})
    write_run(tmp_path, ended=ended)
    assert repr(run_end(tmp_path, RUN)) == repr(ended)
    assert "NaN" not in rows(tmp_path, "ends")[0]["final_json"]  # strict JSON has none


def test_secrets_in_a_reason_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret-0123456789")
    write_run(tmp_path, ended=end(Status.FAILED, "401 for planted-secret-0123456789"))
    assert run_end(tmp_path, RUN).reason == "401 for [redacted]"


def test_nothing_is_visible_before_a_flush_and_nothing_is_written_twice(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, RUN)
    sink.emit(start())
    sink.emit(step(0))
    assert all_files(tmp_path) == []
    sink.flush()
    written = all_files(tmp_path)
    assert written == [f"records/{table}/{RUN}/part-00000.parquet" for table in ("groups", "runs", "steps")]
    sink.close()
    assert all_files(tmp_path) == written


def test_a_decision_that_froze_nothing_writes_no_part_of_freezes(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, RUN)
    for event in [start(), body()[5]]:
        sink.emit(event)
    sink.flush()
    assert len(rows(tmp_path, "events")) == 1
    assert parts(tmp_path, "freezes", RUN) == []


def test_tables_are_written_in_their_order_so_that_an_end_is_the_last_thing_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr("fat_ray.records.parquet.write_atomic", lambda path, data: written.append(path.parent.parent.name))
    write_run(tmp_path)
    assert written[:2] == ["groups", "runs"]
    for earlier, later in pairwise(written[written.index("steps", written.index("events")) :]):  # the second flush
        assert list(TABLES).index(earlier) < list(TABLES).index(later)
    assert written[-1] == "ends"
    assert set(written) == set(TABLES) - {"resumptions"}


def test_a_later_attempt_continues_the_part_numbers_and_is_the_one_that_counts(tmp_path: Path) -> None:
    write_run(tmp_path, ended=end(Status.FAILED, "worker lost"))
    write_run(tmp_path)
    assert [part.name for part in parts(tmp_path, "steps", RUN)] == [f"part-{number:05d}.parquet" for number in range(4)]
    assert run_end(tmp_path, RUN).status is Status.COMPLETED
    assert list(run_start(tmp_path, RUN).groups) == GROUPS
    assert runs(tmp_path) == [RUN]


def test_a_run_without_groups_comes_back(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, RUN)
    sink.emit(start(groups=[]))
    sink.emit(Drift(0, 0, [], [], [], [], []))
    sink.close()
    assert run_start(tmp_path, RUN) == start(groups=[])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_said_leaves_nothing_torn_and_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail_midway(path: Path, data: memoryview) -> None:
        if path.parent.parent.name == "steps":
            path.write_bytes(bytes(data)[: len(data) // 2])
            raise OSError(code, os.strerror(code))
        write_synced(path, data)

    write_synced = files.write_synced
    monkeypatch.setattr(files, "write_synced", fail_midway)
    sink = ParquetSink(tmp_path, RUN)
    for event in [start(), *body()]:
        sink.emit(event)
    with pytest.raises(RecordError, match=rf"cannot write .*steps.*{os.strerror(code)}") as caught:
        sink.flush()
    assert ("MiB free" in str(caught.value)) == (code != errno.EIO)
    assert all_files(tmp_path) == [f"records/{table}/{RUN}/part-00000.parquet" for table in ("groups", "layers", "runs")]

    monkeypatch.setattr(files, "write_synced", write_synced)
    sink.emit(end())
    sink.close()
    assert [row["step"] for row in rows(tmp_path, "steps")] == [0, 1, 2, 3, 4]
    assert len(rows(tmp_path, "runs")) == 1
    assert len(rows(tmp_path, "groups")) == len(GROUPS)


def test_an_interrupt_while_writing_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(tmp_path / "a.json", b"{}")
    assert all_files(tmp_path) == []


def test_a_failed_rewrite_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomic(tmp_path / "a.json", b"old")
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(errno.EACCES, "Permission denied")))
    with pytest.raises(RecordError, match=r"a\.json \(3 bytes\): Permission denied"):
        files.write_atomic(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert all_files(tmp_path) == ["a.json"]


def test_events_of_another_run_are_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="events of other sent"):
        ParquetSink(tmp_path, RUN).emit(start("other"))


def test_hundreds_of_groups_are_one_part_of_exact_values(tmp_path: Path) -> None:
    groups = [GroupInfo(f"g{number}", f"l{number}", "Linear", number + 1) for number in range(250)]
    sink = ParquetSink(tmp_path, RUN)
    sink.emit(start(groups=groups))
    values = [[(number * 250 + group) / 7 for group in range(250)] for number in range(40)]
    for number, distance in enumerate(values):
        sink.emit(Drift(number, number, distance, distance, distance, distance, [True] * 250))
    sink.flush()
    table = read_table(tmp_path, "drift", RUN)
    assert table["distance"].to_pylist() == [value for update in values for value in update]
    assert table["group"].to_pylist() == list(range(250)) * 40
    assert len(parts(tmp_path, "drift", RUN)) == 1


def steps_in(directory: Path, table: str) -> list[int]:
    return list(read_table(directory, table, RUN)["step"].to_pylist())


def test_rewind_takes_back_what_came_after_a_position(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, RUN)
    for event in [start(), step(0), step(1)]:
        sink.emit(event)
    sink.flush()
    position = sink.position()
    for event in [step(2), end(Status.FAILED, "worker lost")]:
        sink.emit(event)
    sink.flush()
    again = ParquetSink(tmp_path, RUN)
    assert again.reaches(position)
    assert again.rewind(position)
    assert (steps_in(tmp_path, "steps"), run_end(tmp_path, RUN)) == ([0, 1], None)
    for event in [resumption(), step(2), step(3), end()]:
        again.emit(event)
    again.flush()
    assert steps_in(tmp_path, "steps") == [0, 1, 2, 3]
    assert steps_in(tmp_path, "resumptions") == [2]
    assert run_start(tmp_path, RUN) == start()
    assert [part_number(part) for part in parts(tmp_path, "steps", RUN)] == [0, 1, 2]
    assert run_end(tmp_path, RUN) == end()


def test_rewind_to_the_beginning_keeps_the_start_and_what_happened_to_the_run(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, RUN)
    assert not sink.rewind({})
    for event in [start(), resumption(0), step(0)]:
        sink.emit(event)
    sink.flush()
    assert ParquetSink(tmp_path, RUN).rewind({})
    assert (steps_in(tmp_path, "steps"), steps_in(tmp_path, "resumptions")) == ([], [0])
    assert run_start(tmp_path, RUN) == start()


def test_a_start_that_was_half_written_is_written_anew(tmp_path: Path) -> None:
    write_run(tmp_path)
    for part in parts(tmp_path, "runs", RUN):
        part.unlink()
    sink = ParquetSink(tmp_path, RUN)
    assert not sink.rewind({})
    assert read_table(tmp_path, "groups", RUN).num_rows == 0
    sink.emit(start())
    sink.flush()
    assert run_start(tmp_path, RUN) == start()


def test_readers_see_a_shorter_run_at_any_moment_of_a_rewind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    order = []
    monkeypatch.setattr(
        "fat_ray.records.parquet.write_atomic", lambda path, data: order.append((path.parent.parent.name, part_number(path)))
    )
    ParquetSink(tmp_path, RUN).rewind({"steps": 1})
    assert order[0] == ("ends", 0)
    assert [number for table, number in order if table == "drift"] == [1, 0]
    assert [number for table, number in order if table == "steps"] == [1]
    tables = [list(TABLES).index(table) for table, _ in order]
    assert tables == sorted(tables, reverse=True)


def test_a_missing_part_is_noticed(tmp_path: Path) -> None:
    write_run(tmp_path)
    sink = ParquetSink(tmp_path, RUN)
    assert sink.reaches(sink.position())
    parts(tmp_path, "steps", RUN)[0].unlink()
    assert not sink.reaches(sink.position())
