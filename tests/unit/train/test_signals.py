"""Signals, raised in this process."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fat_ray.engine.request import Request
from fat_ray.errors import Interrupted
from fat_ray.events import Status
from fat_ray.train.signals import SIGNALS, interruptible, listening, run_signals
from fat_ray.train.stop import RequestPoll, stop_requested


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_asks_and_the_second_ends_at_once(number: int, exit_code: int) -> None:
    stops: list[str] = []
    with listening(lambda: stops.append("stop"), lambda: None) as listener:
        assert listener.stopped_by is None
        os.kill(os.getpid(), number)
        assert (stops, listener.stopped_by) == (["stop"], number)
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), number)
    assert (caught.value.exit_code, caught.value.at_once) == (exit_code, True)
    assert isinstance(caught.value, KeyboardInterrupt)


def test_usr1_asks_to_save_as_often_as_it_comes() -> None:
    saves: list[str] = []
    with listening(lambda: None, lambda: saves.append("save")) as listener:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
    assert (saves, listener.stopped_by) == (["save", "save"], None)


def test_a_run_is_asked_and_the_end_is_told_when_it_is_done(tmp_path: Path) -> None:
    def run() -> None:
        with run_signals(tmp_path, "run-s0"):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert RequestPoll(tmp_path, "run-s0")() is Request.SAVE
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_requested(tmp_path, "run-s0") is Status.STOPPED

    with pytest.raises(Interrupted) as caught:
        run()
    assert (caught.value.exit_code, caught.value.at_once) == (143, False)


def test_another_thread_hears_nothing(tmp_path: Path) -> None:
    heard: list[object] = []

    def listen() -> None:
        with run_signals(tmp_path, "run-s0") as listener, interruptible():
            heard.append(listener.stopped_by)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [None]


def test_before_anything_listens_term_interrupts_and_usr1_is_ignored() -> None:
    with interruptible():
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert (caught.value.exit_code, caught.value.at_once) == (143, False)
