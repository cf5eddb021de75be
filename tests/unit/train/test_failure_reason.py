from pathlib import Path
from typing import Any

import pytest

from fat_ray.errors import DataError, RunFailedError
from fat_ray.records.reader import run_end
from fat_ray.train.failure import MAX_REASON, killed_by, lost_peer, one_line, root_cause, write_log
from fat_ray.train.local import run_local
from tests.support.jobs import tiny_job

LOST_PEER = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:40000"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("image 3\n  is unreadable"), "image 3 is unreadable"),
        (DataError(), "DataError"),
        (ValueError("λ is\nnegative"), "ValueError: λ is negative"),
        (KeyError("lr"), "KeyError: 'lr'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_error_becomes_one_line(error: Exception, text: str) -> None:
    assert one_line(error) == text


def test_a_long_message_is_cut() -> None:
    text = one_line(ValueError("x" * 1000))
    assert len(text) == MAX_REASON
    assert text.endswith("x…")


@pytest.mark.parametrize(
    ("exit_code", "text"),
    [(-9, "killed by SIGKILL (out of memory?)"), (-11, "killed by SIGSEGV"), (-64, "SIGRTMAX"), (-200, "signal 200"), (3, "exit code 3")],
)
def test_an_exit_code_is_explained(exit_code: int, text: str) -> None:
    assert text in killed_by(exit_code)


def test_the_cause_is_shown_and_not_its_victims() -> None:
    assert root_cause({0: LOST_PEER, 1: "KeyError: 'lr'"}) == "worker 1: KeyError: 'lr'"
    assert root_cause({0: "ValueError: a", 1: "ValueError: a"}) == "worker 0: ValueError: a"


def test_an_error_of_a_collective_is_that_of_a_lost_worker_and_one_of_the_task_is_not() -> None:
    assert lost_peer(LOST_PEER)
    assert lost_peer("DistBackendError: NCCL error: remote process exited or there was a network error")
    assert not lost_peer("ConnectionResetError: [Errno 104] Connection reset by peer")  # of its data, say


def test_a_victim_alone_says_that_another_worker_is_to_blame() -> None:
    assert root_cause({0: LOST_PEER}).startswith("worker 0 lost another worker of the run")


def test_no_secret_is_shown_or_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "planted-0123456789")
    error = ValueError("x" * (MAX_REASON - 30) + " planted-0123456789 ftp://me:pass@host/")
    assert "planted" not in one_line(error)
    logged = write_log(tmp_path, "run-s0", str(error)).read_text()
    assert "planted" not in logged
    assert "ftp://[redacted]@host/" in logged


@pytest.mark.timeout(30)  # trains
@pytest.mark.parametrize("settings", [{"fail": "env:MY_API_TOKEN"}, {"trouble": {"1": "env:MY_API_TOKEN"}}])
def test_a_run_that_fails_with_a_secret_leaves_it_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "planted-0123456789")
    job = tiny_job(tmp_path, workers=1, **settings)
    with pytest.raises(RunFailedError, match=r"ValueError: \[redacted\] was refused") as failed:
        run_local(job)
    assert "planted" not in str(failed.value)
    end = run_end(tmp_path, job.run)  # compressed in its file
    assert end is None or end.reason == "ValueError: [redacted] was refused"
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert b"[redacted] was refused" in written[tmp_path / "logs" / "run-s0.log"]
    assert not [path for path, content in written.items() if b"planted" in content]


def test_a_log_grows(tmp_path: Path) -> None:
    path = write_log(tmp_path, "run-s0", "first\n")
    assert write_log(tmp_path, "run-s0", "second") == path == tmp_path / "logs" / "run-s0.log"
    assert path.read_text() == "first\nsecond\n"
