"""One run as a Ray Train (V2) job: N workers, their failures, and their metrics on the way. The records tell how it ended."""

import json
import math
import shutil
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from fat_ray.errors import NotBegunError, OutputError, PlaceLostError, RunFailedError, WorkerLostError
from fat_ray.events import RunEnd, Status
from fat_ray.records.reader import run_end
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import TrainSpec
from fat_ray.train.failure import DIED, SILENT, lost_peer, one_line, root_cause, write_log
from fat_ray.train.placement import await_place
from fat_ray.train.resources import Executor, backend, worker_resources
from fat_ray.train.retry import with_retries
from fat_ray.train.signals import run_signals
from fat_ray.train.stop import clear_requests, request_stop
from fat_ray.train.worker import work

Report = Callable[[dict[str, Any]], None]

TRAIN_ENV: Mapping[str, str] = MappingProxyType(
    {
        # Relative paths in a study file, and the git commit of a record, are those of the directory the study was started in.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # The controller polls every 2 s by default, and each report waits for a poll.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",
        # A process per run that watches for spot nodes about to vanish; a real cluster sets it back to 1.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # Prometheus metrics of the controller and each worker.
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # A failed run waits this long for its process group to go; a worker that hangs in a collective never lets it go (default 30).
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2",
        # How long Tune waits for a trial function to leave before its process is given up (default 2).
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "20",
        # A stock run looks for a place before it asks Ray Train for one; if another was quicker in between, it goes back to looking.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    }
)
"""Environment of every process that `fit` runs in: set it in `os.environ` and in the `env_vars` of Ray's runtime environment."""


def train_environment(spec: TrainSpec) -> dict[str, str]:
    """`TRAIN_ENV`, and what depends on the run."""
    return {**TRAIN_ENV, "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(spec.stall_timeout_s)}


PLACEMENT_TIMEOUT_S = 120.0
"""As `budget.placement_timeout_s` of a study has it by default."""

POLL_S = 0.05
"""Time between two looks for metrics of a stock run."""


def fit(
    job: RunJob, *, executor: Executor = "stock", report: Report | None = None, placement_timeout_s: float = PLACEMENT_TIMEOUT_S
) -> RunEnd:
    """Trains one run with Ray Train and returns how it ended, from its records. Blocks; no worker is left when it returns.

    To be called in a Tune trial, or in a driver that is connected to Ray. Warm workers need a Tune trial with the reservation of
    `trial_resources`; elsewhere the stock way is taken.

    A run that loses a worker goes on from its newest checkpoint, as often as `train.retries` says: with new workers, since what Ray
    Train would restart by itself (`FailureConfig.max_failures`) includes errors of the task, which would only be there again.

    Args:
        job: The run; its directory must be reachable by this process and all workers.
        executor: As returned by `resolve`.
        report: Told the metrics of each evaluation in order, all of them before this returns, in this process; but
            what it reports in the moment in which a worker is lost may be in the records alone. In a trial: `tune.report`.
            If it raises (Tune does to end a trial), the workers are asked to stop, and what it raised goes on when they have left.
        placement_timeout_s: A run waits as long as others hold what it needs, but fails when the whole cluster has been too small for it
            for so long. Warm workers have their place already.

    Raises:
        OutputError: The directory has a run of this id that ended already.
        NotBegunError: It was asked to stop while it waited.
        PlaceLostError: Warm only: a part of the trial's place was on a node that left.
        RunFailedError: The run has no result, for the reason in the message; the traceback is in ``<directory>/logs/<run>.log``.
    """
    if not job.resume and run_end(job.directory, job.run) is not None:
        raise OutputError(f"{job.directory} holds the records of run {job.run} already")
    reports = _Reports(job, report)
    try:
        with run_signals(job.directory, job.run) as listener:
            try:
                return with_retries(job, lambda job: _attempt(job, executor, reports, placement_timeout_s))
            except NotBegunError:
                if listener.stopped_by is None:
                    raise
        raise AssertionError("a signal raises Interrupted")
    finally:
        clear_requests(job.directory, job.run, job.driver)
        reports.go_on()  # what it raises takes the place of a failure


def resolve(executor: Executor) -> Executor:
    """The executor that can be used here: warm needs the Ray whose internals it knows; otherwise stock, with one warning."""
    problem = _warm_problem() if executor == "warm" else None
    if problem is None:
        return executor
    warnings.warn(f"the warm executor cannot be used: {problem}; runs start the slower stock way", stacklevel=2)
    return "stock"


@cache
def _warm_problem() -> str | None:
    if not ray.__version__.startswith("2.60."):
        return f"it knows the internals of Ray 2.60, this is Ray {ray.__version__}"
    try:
        import fat_ray.train.warm  # noqa: F401 - whether it can be imported is the question
    except (ImportError, AttributeError) as error:
        return one_line(error)
    return None


class _Reports:
    """Passes metrics on; once the receiver has raised, asks the workers to stop and stays silent until they have left."""

    def __init__(self, job: RunJob, report: Report | None) -> None:
        self._job = job
        self._report = report
        self._raised: BaseException | None = None

    def __call__(self, metrics: dict[str, Any]) -> None:
        if self._report is None or self._raised is not None:
            return
        try:
            self._report(metrics)
        except BaseException as raised:  # noqa: BLE001 - SystemExit too, by which Tune ends a trial; raised again by `go_on`
            self._raised = raised
            request_stop(self._job.directory, self._job.run, Status.STOPPED)

    def go_on(self) -> None:
        if self._raised is not None:
            raise self._raised


class _Mailbox(ray.train.UserCallback):  # type: ignore[misc]
    """Lives in Ray Train's controller, which runs on the node of the process that called `fit`; writes metrics to a local file.

    `ray.tune.integration.ray_train.TuneReportCallback` sends them through a queue actor instead, which Tune reads only until the
    trial function returns: the last report may be lost, or wait for ever. A file costs no process and cannot block the controller.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: object) -> None:  # noqa: ARG002 - Ray's interface
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics[0]) + "\n")


class _Direct(ray.train.UserCallback):  # type: ignore[misc]
    """Passes metrics on in this process, where a warm run has its controller."""

    def __init__(self, reports: _Reports) -> None:
        self._reports = reports

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: object) -> None:  # noqa: ARG002 - Ray's interface
        self._reports(dict(metrics[0]))

    def __reduce__(self) -> tuple[type[ray.train.UserCallback], tuple[()]]:
        """The workers get the run's configuration and with it a copy that does nothing: what it reports to stays here."""
        return ray.train.UserCallback, ()


def _attempt(job: RunJob, executor: Executor, reports: _Reports, placement_timeout_s: float) -> RunEnd:
    """Trains until the run has ended or a worker is lost."""
    before = run_end(job.directory, job.run)  # of an earlier attempt, which this one takes back
    failure, lost = None, False
    try:
        _run(job, executor, reports, placement_timeout_s)
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        write_log(job.directory, job.run, "".join(traceback.format_exception(error)))
        if _found_no_place(error):
            raise PlaceLostError("a part of its place was on a node that left the cluster") from error
        failure, lost = _reason(error, job), _lost_worker(error)
    finally:
        _remove_storage(job)
    end = run_end(job.directory, job.run)
    if end is not None and end != before and end.status is not Status.FAILED:
        return end
    recorded = end.reason if end is not None else "its workers ended without a last record"
    raise (WorkerLostError if lost else RunFailedError)(failure or recorded)


def _run(job: RunJob, executor: Executor, reports: _Reports, placement_timeout_s: float) -> None:
    if executor == "warm" and _workers_are_reserved(job.spec.train.workers):
        from fat_ray.train.warm import WarmTorchTrainer, complaint

        try:
            WarmTorchTrainer(_train_loop, **_arguments(job, _Direct(reports))).fit()
        finally:
            if complaint():
                write_log(job.directory, job.run, complaint())
        return
    while True:
        await_place(job, placement_timeout_s)
        try:
            _run_stock(job, reports)
        except ray.train.TrainingFailedError as error:
            if _found_no_place(error):
                continue
            raise
        return


def _workers_are_reserved(num_workers: int) -> bool:
    reserved = ray.util.get_current_placement_group()
    return reserved is not None and len(reserved.bundle_specs) > num_workers


def _run_stock(job: RunJob, reports: _Reports) -> None:
    with tempfile.TemporaryDirectory(prefix="fat_ray-") as scratch:
        mailbox = Path(scratch) / "metrics.jsonl"
        mailbox.touch()
        trainer = ray.train.torch.TorchTrainer(_train_loop, **_arguments(job, _Mailbox(mailbox)))
        training = _in_background(trainer.fit)
        for metrics in _letters(mailbox, training):
            reports(metrics)
        training.result()


def _in_background(function: Callable[[], object]) -> Future[object]:
    """Runs the function in a thread that does not keep the process alive; in the main one, Ray Train would take over Ctrl-C for good."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again by `future.result`
            future.set_exception(error)

    threading.Thread(target=run, name="fat_ray-fit", daemon=True).start()
    return future


def _letters(mailbox: Path, training: Future[object]) -> Iterator[dict[str, Any]]:
    """What the controller writes, as it comes, until training is over and everything has been read."""
    partial = ""
    with mailbox.open(encoding="utf-8") as file:
        while True:
            over = training.done()  # asked before reading: what was written before is read below
            *lines, partial = (partial + file.read()).split("\n")
            yield from map(json.loads, lines)
            if over:
                return
            wait([training], timeout=POLL_S)


def _arguments(job: RunJob, callback: ray.train.UserCallback) -> dict[str, Any]:
    """What the stock and the warm trainer are told alike."""
    spec = job.spec.train
    return {
        "train_loop_config": {"job": job.model_dump_json()},
        "torch_config": ray.train.torch.TorchConfig(backend=backend(spec), timeout_s=math.ceil(spec.stall_timeout_s)),
        "scaling_config": ray.train.ScalingConfig(
            num_workers=spec.workers, use_gpu=spec.gpus_per_worker > 0, resources_per_worker=worker_resources(spec)
        ),
        "run_config": ray.train.RunConfig(
            name=_storage(job).name,
            storage_path=str(_storage(job).parent),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            callbacks=[callback],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    }


def _train_loop(config: dict[str, str]) -> None:
    """What Ray Train runs in each worker."""
    job = RunJob.model_validate_json(config["job"])
    device = ray.train.torch.get_device() if job.spec.train.gpus_per_worker else torch.device("cpu")
    rank = ray.train.get_context().get_world_rank()
    work(job, rank=rank, device=device, on_evaluation=lambda metrics: ray.train.report(dict(metrics)))


def _storage(job: RunJob) -> Path:
    """Ray Train's own files of the run, apart from those of an earlier driver; nothing in them is needed after it."""
    return Path(job.directory) / "control" / f"{job.run}.{job.driver}"


def _remove_storage(job: RunJob) -> None:
    shutil.rmtree(_storage(job), ignore_errors=True)


def _reason(error: Exception, job: RunJob) -> str:
    if isinstance(error, ray.train.WorkerGroupError):
        return root_cause({rank: _worker_reason(failure) for rank, failure in error.worker_failures.items()})
    spec = job.spec.train
    return f"{spec.workers} workers with {worker_resources(spec)} each could not be run: {one_line(_cause(error))}"


def _cause(error: BaseException) -> BaseException:
    """What went wrong in the controller."""
    cause = getattr(error, "controller_failure", error)
    return getattr(cause, "cause", None) or cause  # a RayTaskError holds what was raised in the task


def _found_no_place(error: BaseException) -> bool:
    """Whether the workers were not even started. Ray Train has no public name for this error."""
    return type(_cause(error)).__name__ == "WorkerGroupStartupTimeoutError"


def _worker_reason(failure: Exception) -> str:
    if _is_silent(failure):
        return SILENT
    return DIED if _died(failure) else one_line(getattr(failure, "health_check_failure", failure))


def _died(failure: Exception) -> bool:
    return isinstance(getattr(failure, "health_check_failure", failure), ray.exceptions.RayActorError)


def _is_silent(failure: Exception) -> bool:
    """Whether it gave no sign for `train.stall_timeout_s`. Ray Train has no public name for this error."""
    return type(getattr(failure, "health_check_failure", failure)).__name__ == "WorkerHealthCheckTimeoutError"


def _lost_worker(error: Exception) -> bool:
    if isinstance(error, ray.train.WorkerGroupError):
        return any(_died(failure) or _is_silent(failure) or lost_peer(one_line(failure)) for failure in error.worker_failures.values())
    return type(_cause(error)).__name__ == "WorkerGroupStartupFailedError"  # it died before it trained
