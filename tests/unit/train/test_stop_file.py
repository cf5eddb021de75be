import threading
from pathlib import Path

import pytest

from fat_ray.engine.request import Request
from fat_ray.errors import RecordError
from fat_ray.events import Status
from fat_ray.train.lease import Driver, write_driver
from fat_ray.train.stop import RequestPoll, clear_requests, request_save, request_stop, stop_file, stop_requested


@pytest.mark.parametrize("status", [Status.PRUNED, Status.STOPPED])
def test_a_request_is_seen_with_its_status_by_its_run_alone(tmp_path: Path, status: Status) -> None:
    assert stop_requested(tmp_path, "t0001-s0") is None
    request_stop(tmp_path, "t0001-s0", status)
    assert stop_requested(tmp_path, "t0001-s0") is status
    assert stop_requested(tmp_path, "t0001-s1") is None


def test_a_request_leaves_one_file_and_can_be_replaced_and_withdrawn(tmp_path: Path) -> None:
    request_stop(tmp_path, "run-s0", Status.PRUNED)
    request_stop(tmp_path, "run-s0", Status.STOPPED)
    assert stop_requested(tmp_path, "run-s0") is Status.STOPPED
    assert list((tmp_path / "control").iterdir()) == [stop_file(tmp_path, "run-s0")]
    clear_requests(tmp_path, "run-s0")
    clear_requests(tmp_path, "run-s0")
    assert stop_requested(tmp_path, "run-s0") is None


def test_a_foreign_stop_file_is_refused_with_its_content(tmp_path: Path) -> None:
    request_stop(tmp_path, "run-s0", Status.STOPPED)
    stop_file(tmp_path, "run-s0").write_text("please")
    with pytest.raises(RecordError, match="'please'"):
        stop_requested(tmp_path, "run-s0")


def test_readers_never_see_half_a_request(tmp_path: Path) -> None:
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            request_stop(tmp_path, "run-s0", Status.PRUNED)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {stop_requested(tmp_path, "run-s0") for _ in range(300)}  # raises when it reads something else
    finally:
        over.set()
        writer.join()
    assert seen <= {None, Status.PRUNED}


def test_poll_looks_seldom_and_remembers(tmp_path: Path) -> None:
    seldom, eager = RequestPoll(tmp_path, "run-s0", interval_s=3600), RequestPoll(tmp_path, "run-s0", interval_s=0)
    assert (seldom(), eager()) == (None, None)
    request_stop(tmp_path, "run-s0", Status.PRUNED)
    assert seldom() is None
    assert eager() is Request.PRUNE
    clear_requests(tmp_path, "run-s0")
    assert eager() is Request.PRUNE


def test_a_request_to_save_is_told_once(tmp_path: Path) -> None:
    poll = RequestPoll(tmp_path, "run-s0", interval_s=0)
    for _ in range(2):
        request_save(tmp_path, "run-s0")
        request_save(tmp_path, "run-s0")
        assert [poll(), poll()] == [Request.SAVE, None]
    assert list((tmp_path / "control").iterdir()) == []


def test_to_stop_comes_before_to_save_and_to_leave_before_both(tmp_path: Path) -> None:
    poll = RequestPoll(tmp_path, "run-s0", driver=1, interval_s=0)
    write_driver(tmp_path, Driver(1))
    request_save(tmp_path, "run-s0")
    request_stop(tmp_path, "run-s0", Status.STOPPED)
    assert RequestPoll(tmp_path, "run-s0", driver=1, interval_s=0)() is Request.STOP
    write_driver(tmp_path, Driver(2))
    assert [poll(), poll()] == [Request.LEAVE, Request.LEAVE]
    assert RequestPoll(tmp_path, "run-s0", driver=2, interval_s=0)() is Request.STOP


def test_what_a_later_driver_asks_for_is_not_withdrawn_by_an_earlier_one(tmp_path: Path) -> None:
    write_driver(tmp_path, Driver(2))
    request_stop(tmp_path, "run-s0", Status.STOPPED)
    clear_requests(tmp_path, "run-s0", driver=1)
    assert stop_requested(tmp_path, "run-s0") is Status.STOPPED
    clear_requests(tmp_path, "run-s0", driver=2)
    assert stop_requested(tmp_path, "run-s0") is None
