import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fat_ray.errors import RunFailedError
from fat_ray.events import Status
from fat_ray.records.reader import read_table, run_end
from fat_ray.spec.job import RunJob
from fat_ray.train.local import run_local
from fat_ray.train.stop import request_stop, stop_file
from tests.support.jobs import STEPS, tiny_job

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    left = [process.cmdline() for process in set(psutil.Process().children()) - before]
    assert [command for command in left if "resource_tracker" not in " ".join(command)] == []  # Python's own, one per process


def losses(job: RunJob) -> list[float]:
    return read_table(job.directory, "steps", job.run)["loss"].to_pylist()


@pytest.mark.parametrize("workers", [1, 2])
def test_completes_and_reports_every_evaluation(tmp_path: Path, workers: int) -> None:
    job = tiny_job(tmp_path, workers=workers)
    reports = []
    end = run_local(job, reports.append)
    assert end == run_end(tmp_path, job.run)
    assert end.status is Status.COMPLETED
    assert end.steps == STEPS
    assert [report["step"] for report in reports] == [2, 4, 6, 8]
    assert "test/f1" in reports[-1]


def test_one_worker_in_a_used_process_equals_one_in_a_fresh_process(tmp_path: Path) -> None:
    again, fresh = tiny_job(tmp_path / "again", workers=1), tiny_job(tmp_path / "fresh", workers=1)
    run_local(tiny_job(tmp_path / "first", workers=1, seed=5, trouble={"3": "settings"}))
    run_local(again)
    (tmp_path / "job.json").write_text(fresh.model_dump_json())
    call = "from fat_ray.spec.job import RunJob; from fat_ray.train.local import run_local; import pathlib, sys; "
    call += "run_local(RunJob.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))"
    subprocess.run([sys.executable, "-c", call, str(tmp_path / "job.json")], check=True, env=environment())
    assert losses(again) == losses(fresh)
    assert len(losses(again)) == STEPS


@pytest.mark.parametrize("workers", [1, 2])
def test_diverged_run_ends_with_its_reason(tmp_path: Path, workers: int) -> None:
    end = run_local(tiny_job(tmp_path, workers=workers, trouble={"3": "nan"}, trouble_rank=workers - 1))
    assert end.status is Status.DIVERGED
    assert "step 3" in end.reason


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_request_ends_the_run_and_is_cleared(tmp_path: Path, workers: int) -> None:
    job = tiny_job(tmp_path, workers=workers, steps=2000, slow_s=0.01)
    end = run_local(job, lambda _: request_stop(tmp_path, job.run, Status.PRUNED))
    assert end.status is Status.PRUNED
    assert 0 < end.steps < 2000
    assert not stop_file(tmp_path, job.run).exists()


@pytest.mark.parametrize(("workers", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_exception_names_the_worker_and_leaves_a_log(tmp_path: Path, workers: int, rank: int) -> None:
    job = tiny_job(tmp_path, workers=workers, trouble={"3": "raise"}, trouble_rank=rank)
    with pytest.raises(RunFailedError, match=r"KeyError.*told to raise") as failure:
        run_local(job)
    assert workers == 1 or f"worker {rank}:" in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "Traceback" in (tmp_path / "logs" / f"{job.run}.log").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_error_before_training_begins_is_told(tmp_path: Path, workers: int) -> None:
    with pytest.raises(RunFailedError, match="no such crack"):
        run_local(tiny_job(tmp_path, workers=workers, fail="no such crack"))


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_worker_is_named(tmp_path: Path, rank: int) -> None:
    with pytest.raises(RunFailedError, match=f"worker {rank}: .*SIGKILL"):
        run_local(tiny_job(tmp_path, trouble={"3": "kill"}, trouble_rank=rank))


@pytest.mark.parametrize("trouble", ["kill", "freeze"])
def test_lost_worker_is_replaced_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str) -> None:
    whole = tiny_job(tmp_path / "whole")
    run_local(whole)
    settings = {"trouble": {"3": f"{trouble}:{tmp_path / 'once'}"}, "trouble_rank": 1}
    job = tiny_job(tmp_path / "lost", checkpoint=2, retries=1, stall_timeout_s=5.0, **settings)
    assert run_local(job).status is Status.COMPLETED
    assert losses(job) == losses(whole)
    assert read_table(job.directory, "resumptions", job.run)["step"].to_pylist() == [2]
    assert "it goes on from its newest checkpoint (retries left: 0)" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_at_the_next_step_and_leaves_nothing(tmp_path: Path, workers: int) -> None:
    job = tiny_job(tmp_path, workers=workers, steps=5000, slow_s=0.01, trouble={"3": f"file:{tmp_path / 'training'}"})
    process = started(job)
    wait_for(tmp_path / "training", process)
    workers_of_it = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1  # Interrupted, which is more than a KeyboardInterrupt, went through
    end = run_end(tmp_path, job.run)
    assert end is not None
    assert end.status is Status.STOPPED
    assert psutil.wait_procs(workers_of_it, timeout=20)[1] == []


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = started(tiny_job(tmp_path, steps=5000, slow_s=0.01, trouble={"3": f"file:{tmp_path / 'training'}"}))
    wait_for(tmp_path / "training", process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.wait(60)
    assert psutil.wait_procs(workers, timeout=30)[1] == []


def test_needs_no_ray() -> None:
    call = "import sys; import fat_ray.train.local; print([name for name in ('ray', 'optuna', 'wandb') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", call], check=True, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def started(job: RunJob) -> subprocess.Popen[bytes]:
    call = "from fat_ray.spec.job import RunJob; from fat_ray.train.local import run_local; import sys; "
    call += "run_local(RunJob.model_validate_json(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", call, job.model_dump_json()], env=environment(), stderr=subprocess.DEVNULL)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the run has made the file; the test's time limit ends a wait that is in vain."""
    while not path.exists():
        assert process.poll() is None, "the run ended before it was interrupted"
        time.sleep(0.05)
