"""One run on this machine without Ray: in this process, or as DDP workers in processes of their own that talk over loopback."""

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from fat_ray.errors import ResourceError, RunFailedError, WorkerLostError
from fat_ray.events import RunEnd
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import TrainSpec
from fat_ray.train.failure import killed_by, lost_peer, one_line, root_cause, write_log
from fat_ray.train.resources import backend, gpu_of
from fat_ray.train.retry import with_retries
from fat_ray.train.signals import SIGNALS, Listener, run_signals
from fat_ray.train.stop import clear_requests
from fat_ray.train.worker import work

Report = Callable[[dict[str, float]], None]

LOOK_S = 0.2
"""Longest time between two looks at the clock while workers train."""
SETTLE_S = 2.0
"""After a worker failed, how long its peers may take to fail too, so that cause and consequence can be told apart."""
LEAVE_S = 300.0
"""After Ctrl-C, how long the workers may take to reach the end of their step, evaluate where that is due, and save a checkpoint."""
END_S = 5.0
"""How long a process that closed its connection may take to end."""


def run_local(job: RunJob, report: Report | None = None) -> RunEnd:
    """Trains one run without Ray and returns how it ended. Ctrl-C and SIGTERM stop it at its next step, SIGUSR1 makes it save a checkpoint.

    No process is left behind.

    Of several workers, one whose process dies is replaced as often as `train.retries` says. What dies with this process is not.

    Args:
        job: The run.
        report: Told the metrics of each evaluation, in this process.

    Raises:
        ResourceError: The machine has fewer GPUs than the run needs.
        RunFailedError: The run has no result, for the reason in the message; tracebacks are in ``<directory>/logs/<run>.log``.
        Interrupted: After Ctrl-C or SIGTERM, when all workers have ended.
    """
    _check_gpus(job.spec.train)
    train = _in_process if job.spec.train.workers == 1 else _in_processes
    try:
        return with_retries(job, lambda job: train(job, report))
    finally:
        clear_requests(job.directory, job.run, job.driver)


def _check_gpus(spec: TrainSpec) -> None:
    if not spec.gpus_per_worker:
        return
    needed, found = gpu_of(spec, spec.workers - 1) + max(1, int(spec.gpus_per_worker)), torch.cuda.device_count()
    if needed > found:
        raise ResourceError(
            f"train.gpus_per_worker = {spec.gpus_per_worker:g}: {spec.workers} workers need {needed} GPUs, this machine has {found}"
        )


def _device(spec: TrainSpec, rank: int) -> torch.device:
    return torch.device("cuda", gpu_of(spec, rank)) if spec.gpus_per_worker else torch.device("cpu")


def _in_process(job: RunJob, report: Report | None) -> RunEnd:
    with run_signals(job.directory, job.run):
        try:
            return work(
                job, rank=0, device=_device(job.spec.train, 0), on_evaluation=lambda metrics: report(dict(metrics)) if report else None
            )
        except RunFailedError:
            write_log(job.directory, job.run, traceback.format_exc())
            raise


def _in_processes(job: RunJob, report: Report | None) -> RunEnd:
    with run_signals(job.directory, job.run) as listener, _started(job) as workers:
        _follow(workers, report, listener)
    return _result(job, workers)


@dataclass
class _Worker:
    """A worker as its parent sees it; `end` or `failure` is set once it is done."""

    rank: int
    process: BaseProcess
    connection: Connection
    end: RunEnd | None = None
    failure: str = ""
    died: bool = False
    details: str = ""

    @property
    def running(self) -> bool:
        return self.end is None and not self.failure

    def receive(self, report: Report | None) -> None:
        """Takes one message; the end of the stream without a last word means that the process died."""
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(END_S)
            self.failure, self.died = killed_by(self.process.exitcode or 0), True
            return
        if kind == "end":
            (self.end,) = content
        elif kind == "failed":
            self.failure, self.details = content
        elif report is not None:
            report(*content)


@contextmanager
def _started(job: RunJob) -> Iterator[list[_Worker]]:
    """Starts the workers, and ends those that are left when the body is done, however it ends."""
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="fat_ray-") as scratch:
        try:
            for rank in range(job.spec.train.workers):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_worker, args=(job.model_dump_json(), rank, f"{scratch}/rendezvous", theirs))
                with _held_back():
                    process.start()
                theirs.close()
                workers.append(_Worker(rank, process, ours))
            yield workers
        finally:
            _end(workers)


@contextmanager
def _held_back() -> Iterator[None]:
    """A process that is started within does not hear signals until it has chosen what to do about them; this one hears them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(workers: list[_Worker]) -> None:
    deadline_s = time.monotonic() + END_S
    for worker in workers:
        if worker.running:
            worker.process.kill()
    for worker in workers:
        worker.process.join(max(0.0, deadline_s - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        worker.process.close()


def _follow(workers: list[_Worker], report: Report | None, listener: Listener) -> None:
    """Waits until all workers are done, or until those that are left after a failure or Ctrl-C have had their time."""
    deadline_s = float("inf")
    while (running := {worker.connection: worker for worker in workers if worker.running}) and time.monotonic() < deadline_s:
        for connection in wait(list(running), timeout=LOOK_S):
            assert isinstance(connection, Connection)
            running[connection].receive(report)
        if any(worker.failure for worker in workers):
            deadline_s = min(deadline_s, time.monotonic() + SETTLE_S)
        elif listener.stopped_by is not None:
            deadline_s = min(deadline_s, time.monotonic() + LEAVE_S)


def _result(job: RunJob, workers: list[_Worker]) -> RunEnd:
    failures = {worker.rank: worker.failure for worker in workers if worker.failure}
    for worker in workers:
        if worker.failure:
            write_log(job.directory, job.run, f"worker {worker.rank}: {worker.failure}\n{worker.details}")
    end = workers[0].end
    if end is None:
        lost = any(worker.died or lost_peer(worker.failure) for worker in workers)
        raise (WorkerLostError if lost else RunFailedError)(root_cause(failures))
    return end


def _worker(text: str, rank: int, rendezvous: str, connection: Connection) -> None:
    """Main function of a worker process: its last message is ``end`` or ``failed``."""
    for number in SIGNALS:  # they may reach the whole group of processes; the parent alone decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(*message: Any) -> None:
        with suppress(BrokenPipeError):  # the parent is gone
            connection.send(message)

    try:
        tell("end", _distributed(RunJob.model_validate_json(text), rank, rendezvous, tell))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent shall know
        tell("failed", one_line(error), traceback.format_exc())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _distributed(job: RunJob, rank: int, rendezvous: str, tell: Callable[..., None]) -> RunEnd:
    spec = job.spec.train
    device = _device(spec, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, _loopback())
    timeout, place = timedelta(seconds=spec.stall_timeout_s), Path(rendezvous).as_uri()
    distributed.init_process_group(backend(spec), init_method=place, timeout=timeout, rank=rank, world_size=spec.workers)
    end = work(job, rank=rank, device=device, on_evaluation=lambda metrics: tell("report", dict(metrics)) if rank == 0 else None)
    distributed.destroy_process_group()
    return end


def _loopback() -> str:
    """Name of the loopback interface: ``lo`` on Linux, ``lo0`` on macOS."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
