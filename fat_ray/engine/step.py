"""One training step, as a table of contents: batch, gradients, factors, reduction, drift, decision, masks, update."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fat_ray import rules
from fat_ray.engine.flops import FlopMeter
from fat_ray.engine.order import TrainingOrder, learning_rate_factor
from fat_ray.errors import DivergedError
from fat_ray.events import Drift, Freeze, Status, Step
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, build_formulas
from fat_ray.fisher.reduce import all_sum, check_agreement, check_layout, world
from fat_ray.freeze.freezer import Freezer
from fat_ray.freeze.policy import Decision, Observation, Policy
from fat_ray.spec.run import OptimizerSpec, RunSpec
from fat_ray.tasks.base import Batch, Task, to_device

StopRequest = Callable[[], Status | None]
_STOPS = (None, Status.PRUNED, Status.STOPPED)


@dataclass(frozen=True)
class Agreed:
    """What all ranks know of a batch: the mean loss, and whether the run shall stop before its update."""

    loss: float
    stop: Status | None


class Trainer:
    """The state of one rank's training.

    Args:
        spec: The run.
        task: What is trained.
        policy: Who decides what freezes.
        seed: Seed of the run.
        device: Where to train.
        stop_request: Asked on rank 0 at every step.
        emit: Receives the events of a step, in order.
    """

    def __init__(
        self,
        spec: RunSpec,
        task: Task,
        policy: Policy,
        *,
        seed: int,
        device: torch.device,
        stop_request: StopRequest,
        emit: Callable[[Drift | Freeze | Step], None],
    ) -> None:
        rank, world_size = world()
        self.spec, self.task, self.policy, self.device = spec, task, policy, device
        self.stop_request, self.emit = stop_request, emit
        torch.manual_seed(seed)  # every rank builds the same model
        self.model = task.build_model().to(device).train()
        torch.manual_seed(seed + 7919 * (rank + 1))  # dropout differs between ranks
        self.groups = build_groups(self.model, spec.fisher.groups)
        self.optimizer = build_optimizer(spec.train.optimizer, self.model)
        self.freezer = Freezer(self.model, self.optimizer, self.groups)
        self.meter = DriftMeter(self.model, self.groups, spec.fisher, spec.drift)
        self.collector = Collector(self.model, self.groups, build_formulas(spec.fisher), halves=self.meter.halves)
        self.flop_meter = FlopMeter(self.model)
        self.order = TrainingOrder(task.train_set(), spec.train.global_batch, seed, rank, world_size)
        self.history = rules.DriftHistory.empty(len(self.groups))
        self.num_updates = self.num_events = 0
        self._step_flops: float | None = None
        self._layout_agreed = False
        self.wrapped = wrap(self.model)

    def step(self, step: int) -> Status | None:
        """Trains one step; a status when the run has to stop before its update.

        Raises:
            DivergedError: The loss, a gradient or a statistic is not finite on some rank; nothing was updated.
            RankDisagreementError: Ranks decided differently; nothing was updated.
        """
        started = time.perf_counter()
        batch = to_device(self.order.batch(step), self.device)
        loss = self._backward(batch, step)
        agreed = self._agree(loss, step)
        if agreed.stop is not None:
            return agreed.stop
        flops = self._flops()
        if self._collects(step):
            self._measure(step)
        if self.policy.is_due(step):
            self._decide(step)
        grad_norm = self._clip(step)
        lr = self._update(step)
        samples, active = self.spec.train.global_batch, self.freezer.active_elements
        self.emit(Step(step, agreed.loss, lr, grad_norm, active, samples, flops, time.perf_counter() - started))
        return None

    def _collects(self, step: int) -> bool:
        return self.policy.needs_drift and step % self.spec.fisher.every == 0

    def _backward(self, batch: Batch, step: int) -> Tensor:
        """Forward and backward; DDP averages the gradients, the collector sums factors on the way."""
        if self._collects(step):
            self.collector.arm(self.freezer.active_layers(), Share(batch[0].shape[0], *world()))
        if self._step_flops is None:
            self.flop_meter.arm()
        self.optimizer.zero_grad(set_to_none=True)
        bf16 = self.spec.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            loss = self.task.loss(self.wrapped, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _agree(self, loss: Tensor, step: int) -> Agreed:
        """One small all-reduce: mean loss, whether it is finite everywhere, and rank 0's answer to "shall we stop?"."""
        rank, size = world()
        stop = _STOPS.index(self.stop_request()) if rank == 0 else 0
        finite = bool(torch.isfinite(loss))
        shared = torch.tensor([float(loss) if finite else 0.0, float(not finite), float(stop)], dtype=torch.float64, device=self.device)
        total, bad_ranks, stop_code = all_sum(shared).tolist()
        if bad_ranks:
            raise DivergedError(f"the training loss became NaN or infinite at step {step} on {int(bad_ranks)} of {size} workers")
        return Agreed(total / size, _STOPS[int(stop_code)])

    def _flops(self) -> float:
        """Operations of this step over all ranks; measured once after each change of the active tensors."""
        if self._step_flops is None:
            mine = torch.tensor(float(self.flop_meter.take()), dtype=torch.float64, device=self.device)
            self._step_flops = float(all_sum(mine))
        return self._step_flops

    def _measure(self, step: int) -> None:
        """Sums to distances to smoothed drift."""
        drift, before = self.spec.drift, self.history.count
        sums = self.collector.take()
        if not self._layout_agreed:
            check_layout(sums, step, self.device)
            self._layout_agreed = True
        found = self.meter.update(sums, self._squared_gradient, self.freezer.active, self.device)
        if not found.finite:
            raise DivergedError(f"the Fisher statistics became NaN or infinite at step {step}")
        if self.num_updates == 0 and drift.start == "zero":
            self.history = rules.begin(self.history, self.freezer.active & ~self.meter.dead)
        self.history = rules.observe(self.history, found.distance, found.measured, drift.smoothing, corrected=drift.start == "corrected")
        seen = self.history.count > before
        self.emit(
            Drift(
                step=step,
                update=self.num_updates,
                distance=_optional(found.distance, found.measured),
                noise=_optional(found.noise, found.measured),
                smoothed=_optional(self.history.smoothed, seen),
                score=_optional(rules.score(self.history, drift.score), seen),
                active=self.freezer.active.tolist(),
            )
        )
        self.num_updates += 1

    def _squared_gradient(self, name: str) -> rules.Floats:
        gradient = self.model.get_parameter(name).grad
        assert gradient is not None, f"{name} is active and has no gradient"
        squares: rules.Floats = gradient.double().square().cpu().numpy()
        return squares

    def _decide(self, step: int) -> None:
        """Scores to a decision that all ranks share, to frozen groups; DDP is wrapped again when a tensor left autograd."""
        started = time.perf_counter()
        scores = rules.score(self.history, self.spec.drift.score)
        observation = Observation(
            step=step,
            event=self.num_events,
            scores=scores,
            errors=rules.standard_error(self.history),
            dead=self.meter.dead,
            active=self.freezer.active.copy(),
            elements=self.freezer.elements,
        )
        decision = self.policy.decide(observation)
        check_agreement(f"freeze decision at step {step}", scores.tobytes() + decision.freeze.tobytes(), self.device)
        self._layout_agreed = False
        if self.freezer.freeze(decision.freeze):
            self._rewrap()
        self.emit(self._freeze_event(step, decision, time.perf_counter() - started))
        self.num_events += 1

    def _rewrap(self) -> None:
        del self.wrapped  # the old reducer's hooks must be gone before the new one registers its own
        self.wrapped = wrap(self.model, init_sync=False)
        self._step_flops = None

    def _freeze_event(self, step: int, decision: Decision, decide_s: float) -> Freeze:
        return Freeze(
            step=step,
            event=self.num_events,
            frozen=np.flatnonzero(decision.freeze).tolist(),
            frozen_elements=int(self.freezer.elements[decision.freeze].sum()),
            active_elements=self.freezer.active_elements,
            active_groups=int(self.freezer.active.sum()),
            threshold=decision.threshold,
            limited_by=decision.limited_by,
            decide_s=decide_s,
        )

    def _clip(self, step: int) -> float:
        """Gradient norm over active entries, before it is clipped."""
        self.freezer.mask_gradients()
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
        with self.freezer.protect():
            self.optimizer.step()
        return lr


def wrap(model: nn.Module, *, init_sync: bool = True) -> nn.Module:
    """The model in DDP when there are several ranks, else itself."""
    return DistributedDataParallel(model, init_sync=init_sync) if world()[1] > 1 else model


def build_optimizer(spec: OptimizerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The named optimizer over the model's trainable parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if spec.name == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay)
    return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)


def _optional(values: rules.Floats, known: rules.Bools) -> list[float | None]:
    return [float(value) if is_known else None for value, is_known in zip(values, known, strict=True)]
