"""What a killed driver leaves alive neither writes what another process goes on with, nor takes anything from it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fat_ray.events import Status
from fat_ray.records.reader import parts, read_table
from fat_ray.spec.job import RunJob
from fat_ray.train.lease import Driver, write_driver
from fat_ray.train.local import run_local
from tests.support.interruption import outcome
from tests.support.jobs import tiny_job

pytestmark = pytest.mark.timeout(300)


def slow_job(directory: Path, driver: int = 0) -> RunJob:
    job = tiny_job(directory, workers=1, steps=60, evaluate_every=20, checkpoint=4, slow_s=0.02, policy="none")
    return job.model_copy(update={"driver": driver, "resume": driver > 1})


def started(job: RunJob) -> subprocess.Popen[str]:
    call = "from fat_ray.spec.job import RunJob; from fat_ray.train.local import run_local; import sys; "
    call += "run_local(RunJob.model_validate_json(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", call, job.model_dump_json()], env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_records(job: RunJob, process: subprocess.Popen[str]) -> None:
    while len(parts(job.directory, "steps", job.run)) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_an_orphan_leaves_and_whoever_goes_on_waits_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = slow_job(tmp_path / "whole")
    assert run_local(whole).status is Status.COMPLETED
    orphan = started(slow_job(tmp_path, driver=1))
    write_driver(tmp_path, Driver(1))
    job = slow_job(tmp_path, driver=2)
    wait_for_records(job, orphan)
    orphan.send_signal(signal.SIGSTOP)  # it holds the lock, and does not hear of the next driver yet
    write_driver(tmp_path, Driver(2))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "records").rglob("part-*"))

    def wake() -> None:
        while "waits for the process that wrote it before" not in caplog.text:
            time.sleep(0.02)
        time.sleep(0.5)
        seen.append(sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "records").rglob("part-*")))
        orphan.send_signal(signal.SIGCONT)

    seen: list[list[tuple[Path, int]]] = []
    waker = threading.Thread(target=wake, daemon=True)
    waker.start()
    end = run_local(job)
    waker.join()
    assert seen == [before]  # nobody wrote while the orphan could not
    assert end.status is Status.COMPLETED
    assert "another process goes on with the run" in orphan.communicate()[1]
    assert orphan.returncode == 1
    assert read_table(tmp_path, "resumptions", job.run).num_rows == 1
    assert outcome(job) == outcome(whole)
    assert sorted(path.name for path in (tmp_path / "control").iterdir()) == ["driver.json"]


def test_an_orphan_that_comes_late_is_not_let_in(tmp_path: Path) -> None:
    write_driver(tmp_path, Driver(2))
    late = started(slow_job(tmp_path, driver=1))
    assert "another process goes on with run run-s0" in late.communicate()[1]
    assert late.returncode == 1
    assert not (tmp_path / "records").exists()
