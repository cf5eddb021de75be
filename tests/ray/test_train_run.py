"""Parts of train/run.py that need Ray's package but no running Ray."""

import json
import pickle
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
import ray
import ray.train

from fat_ray.events import Status
from fat_ray.train import run
from fat_ray.train.resources import DRIVER, trial_resources
from fat_ray.train.run import resolve
from fat_ray.train.stop import stop_requested
from tests.support.jobs import tiny_job, tiny_spec


@pytest.fixture
def fresh_resolve() -> None:
    run._warm_problem.cache_clear()
    yield
    run._warm_problem.cache_clear()


def test_warm_is_kept_with_the_ray_it_knows(fresh_resolve: None, recwarn: pytest.WarningsRecorder) -> None:
    assert resolve("warm") == "warm"
    assert resolve("stock") == "stock"
    assert not [warning for warning in recwarn if "warm executor" in str(warning.message)]


def test_warm_falls_back_to_stock_with_another_ray(fresh_resolve: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    with pytest.warns(UserWarning, match=r"this is Ray 2\.61\.0"):
        assert resolve("warm") == "stock"


def test_tune_reserves_the_workers_of_warm_trials_only() -> None:
    spec = tiny_spec(workers=4)
    assert trial_resources(spec, "stock").bundles == [DRIVER]
    assert trial_resources(spec, "warm").bundles == [DRIVER] + [{"CPU": 0.5}] * 4


def test_no_letter_is_lost_when_training_ends_right_after_the_last(tmp_path: Path) -> None:
    for attempt in range(100):
        mailbox, training, count = tmp_path / f"{attempt}.jsonl", Future[object](), 1 + attempt % 4
        mailbox.touch()
        callback = run._Mailbox(mailbox)

        def train(callback: run._Mailbox = callback, training: Future[object] = training, count: int = count) -> None:
            for step in range(count):
                callback.after_report(None, [{"step": step}, {"step": -1}], None)
            training.set_result(None)

        threading.Thread(target=train).start()
        assert [metrics["step"] for metrics in run._letters(mailbox, training)] == list(range(count))


def test_a_letter_is_read_when_it_is_complete(tmp_path: Path) -> None:
    mailbox, training = tmp_path / "metrics.jsonl", Future[object]()
    text = json.dumps({"step": 1, "val/loss": float("nan")})
    mailbox.write_text(text + "\n" + text[:5])
    letters = run._letters(mailbox, training)
    assert next(letters)["step"] == 1
    with mailbox.open("a") as file:
        file.write(text[5:] + "\n")
    training.set_result(None)
    assert [metrics["step"] for metrics in letters] == [1]


def test_a_receiver_that_raises_stops_the_run_and_is_heard_at_its_end(tmp_path: Path) -> None:
    received = []

    def report(metrics: dict[str, object]) -> None:
        received.append(metrics["step"])
        raise SystemExit(0)

    job = tiny_job(tmp_path)
    reports = run._Reports(job, report)
    reports({"step": 1})
    assert stop_requested(tmp_path, job.run) is Status.STOPPED
    reports({"step": 2})
    assert received == [1]
    with pytest.raises(SystemExit):
        reports.go_on()


def test_the_workers_copy_of_the_warm_callback_holds_nothing(tmp_path: Path) -> None:
    callback = run._Direct(run._Reports(tiny_job(tmp_path), lambda _: None))
    assert type(pickle.loads(pickle.dumps(callback))) is ray.train.UserCallback
