from pathlib import Path

import pytest

from fat_ray.errors import DataError
from fat_ray.train.failure import MAX_REASON, killed_by, one_line, root_cause, write_log

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


def test_a_victim_alone_says_that_another_worker_is_to_blame() -> None:
    assert root_cause({0: LOST_PEER}).startswith("worker 0 lost another worker of the run")


def test_a_log_grows(tmp_path: Path) -> None:
    path = write_log(tmp_path, "run-s0", "first\n")
    assert write_log(tmp_path, "run-s0", "second") == path == tmp_path / "logs" / "run-s0.log"
    assert path.read_text() == "first\nsecond\n"
