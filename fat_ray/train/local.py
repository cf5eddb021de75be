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
from fat_ray.train.failure import killed_by, one_line, root_cause, write_log
from fat_ray.train.resources import backend, gpu_of
from fat_ray.train.retry import with_retries
from fat_ray.train.stop import clear_stop, stop_on_interrupt
from fat_ray.train.worker import work

Report = Callable[[dict[str, float]], None]

LOOK_S = 0.2
"""Longest time between two looks at the clock while workers train."""
SETTLE_S = 2.0
"""After a worker failed, how long its peers may take to fail too, so that cause and consequence can be told apart."""
LEAVE_S = 20.0
"""After Ctrl-C, how long the workers may take to reach their next step and write their last record."""
END_S = 5.0
"""How long a worker may take to react to SIGTERM before it is killed."""


def run_local(job: RunJob, report: Report | None = None) -> RunEnd:
    """Trains one run without Ray and returns how it ended. Ctrl-C stops it at its next step; no process is left behind.

    Of several workers, one whose process dies is replaced as often as `train.retries` says. What dies with this process is not.

    Args:
        job: The run.
        report: Told the metrics of each evaluation, in this process.

    Raises:
        ResourceError: The machine has fewer GPUs than the run needs.
        RunFailedError: The run has no result, for the reason in the message; tracebacks are in ``<directory>/logs/<run>.log``.
        KeyboardInterrupt: After a Ctrl-C, when all workers have ended.
    """
    _check_gpus(job.spec.train)
    train = _in_process if job.spec.train.workers == 1 else _in_processes
    try:
        return with_retries(job, lambda job: train(job, report))
    finally:
        clear_stop(job.directory, job.run)


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
    with stop_on_interrupt(job.directory, job.run):
        try:
            return work(
                job, rank=0, device=_device(job.spec.train, 0), on_evaluation=lambda metrics: report(dict(metrics)) if report else None
            )
        except RunFailedError:
            write_log(job.directory, job.run, traceback.format_exc())
            raise


def _in_processes(job: RunJob, report: Report | None) -> RunEnd:
    with stop_on_interrupt(job.directory, job.run) as interrupted, _started(job) as workers:
        _follow(workers, report, interrupted)
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
                process.start()
                theirs.close()
                workers.append(_Worker(rank, process, ours))
            yield workers
        finally:
            _end(workers)


def _end(workers: list[_Worker]) -> None:
    deadline_s = time.monotonic() + END_S
    for worker in workers:
        if worker.running:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(max(0.0, deadline_s - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        worker.process.close()


def _follow(workers: list[_Worker], report: Report | None, interrupted: threading.Event) -> None:
    """Listens until all workers are done, or until those that are left after a failure or Ctrl-C have had their time."""
    deadline_s = float("inf")
    while (running := {worker.connection: worker for worker in workers if worker.running}) and time.monotonic() < deadline_s:
        for connection in wait(list(running), timeout=LOOK_S):
            assert isinstance(connection, Connection)
            running[connection].receive(report)
        if any(worker.failure for worker in workers):
            deadline_s = min(deadline_s, time.monotonic() + SETTLE_S)
        elif interrupted.is_set():
            deadline_s = min(deadline_s, time.monotonic() + LEAVE_S)


def _result(job: RunJob, workers: list[_Worker]) -> RunEnd:
    failures = {worker.rank: worker.failure for worker in workers if worker.failure}
    for worker in workers:
        if worker.failure:
            write_log(job.directory, job.run, f"worker {worker.rank}: {worker.failure}\n{worker.details}")
    end = workers[0].end
    if end is None:
        raise (WorkerLostError if any(worker.died for worker in workers) else RunFailedError)(root_cause(failures))
    return end


def _worker(text: str, rank: int, rendezvous: str, connection: Connection) -> None:
    """Main function of a worker process: its last message is ``end`` or ``failed``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent alone decides
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
    distributed.init_process_group(backend(spec), init_method=Path(rendezvous).as_uri(), rank=rank, world_size=spec.workers)
    end = work(job, rank=rank, device=device, on_evaluation=lambda metrics: tell("report", dict(metrics)) if rank == 0 else None)
    distributed.destroy_process_group()
    return end


def _loopback() -> str:
    """Name of the loopback interface: ``lo`` on Linux, ``lo0`` on macOS."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
