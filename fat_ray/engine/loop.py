"""A whole run on one worker of N: train, evaluate, record, end. Knows nothing of Ray; uses torch.distributed when it is initialised."""

import time
from collections.abc import Callable, Mapping

import torch

from fat_ray.engine.checkpoint import Checkpoints, difference
from fat_ray.engine.costs import Ledger
from fat_ray.engine.evaluate import evaluate
from fat_ray.engine.request import Request, StopRequest
from fat_ray.engine.step import Trainer
from fat_ray.errors import DivergedError, SupersededError
from fat_ray.events import Drift, Eval, Freeze, Layers, Notice, Resumption, RunEnd, Status, Step
from fat_ray.fisher.reduce import world
from fat_ray.records.redact import scrub
from fat_ray.records.sink import Sink
from fat_ray.records.start import start_of
from fat_ray.spec.job import RunJob
from fat_ray.tasks.base import ExampleSet, Task

OnEvaluation = Callable[[Mapping[str, float]], None]


def train(job: RunJob, task: Task, sink: Sink, *, device: torch.device, stop_request: StopRequest, on_evaluation: OnEvaluation) -> RunEnd:
    """Trains a run to its end and records it.

    Args:
        job: What to run.
        task: What is trained.
        sink: Receives the events; a NullSink on every rank but 0. Closed before this returns or raises, but for `SupersededError`.
        device: Where to train.
        stop_request: Asked on rank 0 at each step; answered between this step and the next.
        on_evaluation: Called on every rank after each evaluation of ``val`` with the last metrics (``val/f1``) and the costs so far;
            equal on all ranks but for the seconds.

    Returns:
        How the run ended; a diverged run ends, it does not raise.

    Raises:
        SupersededError: Another process goes on with the run, whose records this one no longer writes.
        Exception: Whatever broke the run, after its end was recorded as failed.
    """
    loop = RunLoop(job, task, sink, device=device, on_evaluation=on_evaluation)
    is_ours = True
    try:
        return loop.run(stop_request)
    except SupersededError:
        is_ours = False
        raise
    except Exception as error:
        loop.fail(scrub(f"{type(error).__name__}: {error}"))
        raise
    finally:
        if is_ours:
            sink.close()


class RunLoop:
    """One run from its first event to its last; see `train`."""

    def __init__(self, job: RunJob, task: Task, sink: Sink, *, device: torch.device, on_evaluation: OnEvaluation) -> None:
        self._job, self._task, self._sink, self._device = job, task, sink, device
        self._on_evaluation = on_evaluation
        self._ledger: Ledger | None = None
        self._sets = task.evaluation_sets()
        self._checkpoints = Checkpoints(job, device)

    def run(self, stop_request: StopRequest) -> RunEnd:
        """Set-up, steps with evaluations in between, end."""
        trainer = self._set_up(stop_request)
        ledger = self._start(trainer)
        trainer.begin()
        steps, every = self._job.spec.train.steps, self._job.spec.train.evaluate_every
        try:
            for done in range(trainer.freezer.step + 1, steps + 1):
                request = trainer.step()
                if request is Request.PRUNE and done < steps:
                    return self._stopped(ledger, Status.PRUNED, done)
                if done == steps:
                    self._evaluate(trainer, ledger, done, self._sets)
                elif done % every == 0:
                    self._evaluate(trainer, ledger, done, {"val": self._sets["val"]})
                if self._checkpoints.is_due(done, asked=request in (Request.SAVE, Request.STOP)):
                    self._sink.flush()
                    self._checkpoints.save(trainer, ledger, self._sink.position())
                if request is Request.STOP and done < steps:
                    return self._stopped(ledger, Status.STOPPED, done)
        except DivergedError as error:
            return self._end(ledger, Status.DIVERGED, str(error))
        return self._end(ledger, Status.COMPLETED)

    def fail(self, reason: str) -> None:
        """Records that the run broke, unless it broke before it had begun."""
        if self._ledger is not None:
            self._end(self._ledger, Status.FAILED, reason)

    def _set_up(self, stop_request: StopRequest) -> Trainer:
        return Trainer(self._job, self._task, device=self._device, stop_request=stop_request, emit=self._record)

    def _start(self, trainer: Trainer) -> Ledger:
        """From the beginning, or from the newest checkpoint where the job says so."""
        world_size = world()[1]
        groups = [group.info() for group in trainer.freezer.groups]
        start = start_of(self._job, groups, world_size=world_size, device=str(self._device), processor=_processor(self._device))
        ledger = Ledger(start.total_elements, world_size, self._task.metrics)
        saved = self._checkpoints.restore(trainer, self._sink.reaches) if self._job.resume else None
        if saved is not None:
            ledger.load_state(saved.ledger)
        self._checkpoints.clear(after=trainer.freezer.step)  # before their rows go
        begun = self._job.resume and self._sink.rewind(saved.records if saved else {})
        self._ledger = ledger
        if begun:
            note = difference(saved, world_size)
            self._sink.emit(Resumption(trainer.freezer.step, start.environment, note, start.started_at))
        else:
            self._sink.emit(start)
        self._sink.flush()
        return ledger

    def _record(self, event: Drift | Freeze | Layers | Notice | Step) -> None:
        assert self._ledger is not None
        if isinstance(event, Step):
            self._ledger.add_step(event)
        self._sink.emit(event)

    def _evaluate(self, trainer: Trainer, ledger: Ledger, step: int, sets: Mapping[str, ExampleSet]) -> None:
        for split, examples in sets.items():
            began = time.perf_counter()
            metrics = evaluate(self._task, trainer.model, examples, self._device)
            result = Eval(step, split, metrics, time.perf_counter() - began)
            ledger.add_evaluation(result)
            self._sink.emit(result)
        self._sink.flush()
        self._on_evaluation(ledger.summary(step))

    def _stopped(self, ledger: Ledger, status: Status, done: int) -> RunEnd:
        return self._end(ledger, status, f"stopped on request after {done} of {self._job.spec.train.steps} steps")

    def _end(self, ledger: Ledger, status: Status, reason: str = "") -> RunEnd:
        end = ledger.end(status, reason)
        self._sink.emit(end)
        self._sink.flush()
        return end


def _processor(device: torch.device) -> str:
    """What results may depend on to the bit, beside versions: the model of a GPU, or the instructions that a CPU is used by."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
