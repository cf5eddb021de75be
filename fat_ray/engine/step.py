"""One training step, as a table of contents: batch, gradients, agreement, statistics and freezing, clipping, update."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fat_ray.engine.flops import Flops
from fat_ray.engine.meters import StepMeter
from fat_ray.engine.order import TrainingOrder, learning_rate_factor
from fat_ray.engine.request import Request, StopRequest
from fat_ray.errors import DivergedError, SupersededError
from fat_ray.events import Drift, Freeze, Layers, Notice, Step
from fat_ray.fisher.reduce import all_sum, world
from fat_ray.freeze.context import prepare_model
from fat_ray.freeze.freezer import Freezer
from fat_ray.freeze.policy import Policy
from fat_ray.freeze.scheduled import RandomMatched
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import OptimizerSpec
from fat_ray.tasks.base import Batch, Task, to_device

_REQUESTS = (None, *Request)


@dataclass(frozen=True)
class Agreed:
    """What all ranks know of a batch: the mean loss, what the ranks computed together, and what the run is asked for."""

    loss: float
    flops: Flops
    request: Request | None


class Trainer:
    """The state of one rank's training.

    Args:
        job: The run.
        task: What is trained.
        device: Where to train.
        stop_request: Asked on rank 0 at every step.
        emit: Receives the events of a step, in order.
        policy: Who decides what freezes, instead of the policy that the run names.
    """

    def __init__(
        self,
        job: RunJob,
        task: Task,
        *,
        device: torch.device,
        stop_request: StopRequest,
        emit: Callable[[Drift | Freeze | Layers | Notice | Step], None],
        policy: Policy | None = None,
    ) -> None:
        rank, world_size = world()
        self.spec, self.task, self.device, self.stop_request, self.emit = job.spec, task, device, stop_request, emit
        torch.manual_seed(job.seed)  # every rank builds the same model
        self.model = prepare_model(task.build_model(), job.spec.freeze, job.seed).to(device).train()
        torch.manual_seed(job.seed + 7919 * (rank + 1))  # dropout differs between ranks
        self.optimizer = build_optimizer(job.spec.train.optimizer, self.model)
        if policy is None and job.follow is not None:
            policy = RandomMatched(job.follow, job.seed)
        self.freezer = Freezer(self.model, self.optimizer, job.spec, policy=policy, steps=job.spec.train.steps, seed=job.seed, emit=emit)
        self.meter = StepMeter(self.model, self.optimizer, device, self.freezer.memory)
        self.order = TrainingOrder(task.train_set(), job.spec.train.global_batch, job.seed, rank, world_size)
        self.wrapped = wrap(self.model)

    def begin(self) -> None:
        """To be called before the first step, when events can be emitted."""
        if self.freezer.memory is not None and not self.order.repeats():
            self.freezer.remember_nothing("training examples are augmented at random, so that none comes again")

    def step(self) -> Request | None:
        """Trains one step; returns what the run is asked for when it is done.

        Raises:
            DivergedError: The loss, a gradient or a statistic is not finite on some rank; nothing was updated.
            RankDisagreementError: Ranks decided differently; nothing was updated.
            SupersededError: The run is another process's now; nothing was updated.
        """
        started, step = time.perf_counter(), self.freezer.step
        self.meter.begin()
        batch = to_device(self.order.batch(step), self.device)
        loss = self._backward(batch)
        agreed = self._agree(loss, step)
        if self.freezer.after_backward():
            self.rewrap()
        grad_norm = self._clip(step)
        lr = self._update(step)
        self.emit(self._record(step, agreed, lr, grad_norm, started))
        if step == 0:
            self.emit(self._layers(agreed))
        return agreed.request

    def _backward(self, batch: Batch) -> Tensor:
        """Forward and backward; DDP averages the gradients, the collector sums factors on the way."""
        self.freezer.arm(batch[0].shape[0])
        self.optimizer.zero_grad(set_to_none=True)
        bf16 = self.spec.train.precision == "bf16"
        with self.meter.flops.watch(batch):
            with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
                loss = self.task.loss(self.wrapped, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _agree(self, loss: Tensor, step: int) -> Agreed:
        """One small all-reduce: mean loss, whether it is finite everywhere, what rank 0 is asked for, and operations."""
        rank, size = world()
        asked = _REQUESTS.index(self.stop_request()) if rank == 0 else 0
        finite, flops = bool(torch.isfinite(loss)), self.meter.flops.step
        mine = [float(loss) if finite else 0.0, float(not finite), float(asked), flops.forward, flops.input_gradient, flops.weight_gradient]
        total, bad_ranks, code, *flops_of_all = all_sum(torch.tensor(mine, dtype=torch.float64, device=self.device)).tolist()
        if bad_ranks:
            raise DivergedError(f"the training loss became NaN or infinite at step {step} on {int(bad_ranks)} of {size} workers")
        request = _REQUESTS[int(code)]
        if request is Request.LEAVE:
            raise SupersededError(f"another process goes on with the run; this one left at step {step}")
        return Agreed(total / size, Flops(*flops_of_all), request)

    def rewrap(self) -> None:
        """Wraps the model in DDP again, after tensors have left autograd."""
        del self.wrapped  # the old reducer's hooks must be gone before the new one registers its own
        self.wrapped = wrap(self.model, init_sync=False)
        self.meter.changed()

    def _clip(self, step: int) -> float:
        """Gradient norm over active entries, before it is clipped."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        limit = self.spec.train.clip_norm if self.spec.train.clip_norm is not None else float("inf")
        norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient norm became {norm} at step {step}")
        return norm

    def _update(self, step: int) -> float:
        """The optimizer's step at this step's learning rate, which is returned."""
        schedule, train = self.spec.train.schedule, self.spec.train
        lr = train.optimizer.lr * learning_rate_factor(schedule.name, step, train.steps, schedule.warmup_steps, schedule.final_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return lr

    def _record(self, step: int, agreed: Agreed, lr: float, grad_norm: float, started: float) -> Step:
        """What is kept of this step."""
        costs, flops = self.meter.end(), agreed.flops
        return Step(
            step=step,
            loss=agreed.loss,
            lr=lr,
            grad_norm=grad_norm,
            active_elements=self.freezer.entries.active_elements,
            samples=self.spec.train.global_batch,
            flops_forward=flops.forward,
            flops_input_gradient=flops.input_gradient,
            flops_weight_gradient=flops.weight_gradient,
            comm_bytes=costs.comm_bytes,
            optimizer_bytes=costs.optimizer_bytes,
            peak_memory_bytes=costs.peak_memory_bytes,
            step_s=time.perf_counter() - started,
        )

    def _layers(self, agreed: Agreed) -> Layers:
        """What the forward of this step cost, layer by layer: this rank's shares of what it cost on all ranks."""
        mine = self.meter.flops.step.forward
        scale = agreed.flops.forward / mine if mine else 0.0
        return Layers([layer for layer, _ in self.meter.flops.layers], [scale * flops for _, flops in self.meter.flops.layers])


def wrap(model: nn.Module, *, init_sync: bool = True) -> nn.Module:
    """The model in DDP when there are several ranks, else itself."""
    return DistributedDataParallel(model, init_sync=init_sync) if world()[1] > 1 else model


def build_optimizer(spec: OptimizerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The named optimizer over the model's trainable parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if spec.name == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay)
    return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
