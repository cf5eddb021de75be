import threading
from pathlib import Path

import pytest

from fat_ray.errors import RecordError
from fat_ray.events import Status
from fat_ray.train.stop import StopPoll, clear_stop, request_stop, stop_file, stop_requested


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
    clear_stop(tmp_path, "run-s0")
    clear_stop(tmp_path, "run-s0")
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
    seldom, eager = StopPoll(tmp_path, "run-s0", interval_s=3600), StopPoll(tmp_path, "run-s0", interval_s=0)
    assert (seldom(), eager()) == (None, None)
    request_stop(tmp_path, "run-s0", Status.PRUNED)
    assert seldom() is None
    assert eager() is Status.PRUNED
    clear_stop(tmp_path, "run-s0")
    assert eager() is Status.PRUNED
