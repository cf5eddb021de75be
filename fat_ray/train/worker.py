"""What runs in each worker process, with Ray or without: one run, from a clean process to its last record."""

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from fat_ray.engine.loop import OnEvaluation, train
from fat_ray.errors import ResourceError, RunFailedError
from fat_ray.events import RunEnd
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.sink import NullSink, Sink
from fat_ray.spec.job import RunJob
from fat_ray.tasks.registry import build_task
from fat_ray.train.failure import one_line
from fat_ray.train.lease import sole_writer
from fat_ray.train.pristine import Settings
from fat_ray.train.resources import threads
from fat_ray.train.stop import RequestPoll


def work(job: RunJob, *, rank: int, device: torch.device, on_evaluation: OnEvaluation) -> RunEnd:
    """Trains one run as one of its workers. The default process group is there if the run has several workers.

    Args:
        job: The run.
        rank: This worker's; rank 0 writes the records.
        device: Where to train.
        on_evaluation: Told the metrics of each evaluation.

    Raises:
        RunFailedError: Something went wrong, at set-up or later, for the reason in the message; chained to the error itself. It
            holds nothing but text, so that it reaches the driver whatever the error was made of.
    """
    try:
        with clean_process(job.seed, threads(job.spec.train)):
            return _train(job, rank, device, on_evaluation)
    except Exception as error:
        raise RunFailedError(one_line(error)) from error


def _train(job: RunJob, rank: int, device: torch.device, on_evaluation: OnEvaluation) -> RunEnd:
    if device.type == "cuda":
        if not torch.cuda.is_available():
            wanted = f"train.gpus_per_worker = {job.spec.train.gpus_per_worker:g}"
            raise ResourceError(f"{wanted}, but torch {torch.__version__} finds no GPU where this worker runs")
        torch.cuda.set_device(device)
    task = build_task(job.spec.task)
    requests = RequestPoll(job.directory, job.run, job.driver)
    with sole_writer(job.directory, job.run, job.driver) if rank == 0 else nullcontext():
        sink: Sink = ParquetSink(job.directory, job.run) if rank == 0 else NullSink()
        return train(job, task, sink, device=device, stop_request=requests, on_evaluation=on_evaluation)


@contextmanager
def clean_process(seed: int, num_threads: int) -> Iterator[None]:
    """Makes the process compute what a fresh one would, whatever ran in it before; takes back what a task has set in it.

    Args:
        seed: For the global generators of Python, NumPy and torch.
        num_threads: Intra-op threads of torch.
    """
    settings = Settings()
    gc.collect()  # the last run's model, before this one allocates its own
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - tasks and libraries may use the global generator
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(mode=False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.set_grad_enabled(True)
    try:
        yield
    finally:
        settings.restore()
