"""Who may write: drivers by number, runs by lock. With other processes: tests/distributed/test_orphans.py."""

import threading
import time
from pathlib import Path

import pytest

from fat_ray.errors import OutputError, RecordError, RunFailedError, SupersededError
from fat_ray.train.lease import Driver, is_superseded, read_driver, sole_driver, sole_writer, write_driver


def test_drivers_are_counted_and_inherit_the_time_that_was_worked(tmp_path: Path) -> None:
    assert read_driver(tmp_path) == Driver(0, 0.0)
    with sole_driver(tmp_path) as first:
        assert first == Driver(1, 0.0)
        write_driver(tmp_path, Driver(1, 12.5))
    with sole_driver(tmp_path) as second:
        assert second == read_driver(tmp_path) == Driver(2, 12.5)
    assert [is_superseded(tmp_path, number) for number in (0, 1, 2)] == [False, True, False]


def test_there_is_one_driver_at_a_time(tmp_path: Path) -> None:
    with sole_driver(tmp_path), pytest.raises(OutputError), sole_driver(tmp_path):
        pytest.fail("there were two")
    assert read_driver(tmp_path).number == 1
    with sole_driver(tmp_path) as after:
        assert after.number == 2


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    write_driver(tmp_path, Driver(1))
    (tmp_path / "control" / "driver.json").write_text('{"pilot": 1}')
    with pytest.raises(RecordError, match=r"driver\.json cannot be read"):
        read_driver(tmp_path)


def test_a_run_is_written_by_one_at_a_time_and_its_lock_leaves_nothing(tmp_path: Path) -> None:
    with sole_writer(tmp_path, "a"), sole_writer(tmp_path, "b"):
        with (
            pytest.raises(RunFailedError, match=r"another process still writes run a: it holds the lock .*a\.lock"),
            sole_writer(tmp_path, "a", wait_s=0),
        ):
            pytest.fail("there were two")
        assert (tmp_path / "control" / "a.lock").exists()
    assert list((tmp_path / "control").iterdir()) == []


def test_whoever_waits_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    inside: list[int] = []

    def write(number: int) -> None:
        with sole_writer(tmp_path, "a"):
            inside.append(number)
            assert inside == [number]
            time.sleep(0.05)
            inside.remove(number)
            done.append(number)

    done: list[int] = []
    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2, 3]


def test_an_earlier_driver_gets_no_lock(tmp_path: Path) -> None:
    write_driver(tmp_path, Driver(2))
    with pytest.raises(SupersededError), sole_writer(tmp_path, "a", 1):
        pytest.fail("it was let in")
    with sole_writer(tmp_path, "a", 2):
        pass
