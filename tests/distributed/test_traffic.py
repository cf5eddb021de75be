"""The bytes that records show are those that the collectives of a step were given."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fat_ray.engine import step as engine
from fat_ray.engine.step import Trainer
from fat_ray.events import Step
from fat_ray.freeze.policies import FisherDrift
from fat_ray.spec.run import FreezeSpec
from tests.support.distributed import run_distributed
from tests.support.jobs import task_of, tiny_job

STEPS, COLLECT, DECIDE = 8, 4, 2


class Tap:
    """Counts what reaches torch's collectives: by DDP's communication hook, and in front of the others that DDP and fat_ray call."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gradients = self.others = 0
        self._wrap, self._all_reduce, self._broadcast = engine.wrap, dist.all_reduce, dist._broadcast_coalesced
        patch.setattr(engine, "wrap", self.wrap)
        patch.setattr(dist, "all_reduce", self.all_reduce)
        patch.setattr(dist, "_broadcast_coalesced", self.broadcast)

    def wrap(self, model: nn.Module, **options: Any) -> nn.Module:
        wrapped = self._wrap(model, **options)
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.register_comm_hook(None, self.reduce)
        return wrapped

    def reduce(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.gradients += bucket.buffer().nbytes
        mean = bucket.buffer() / dist.get_world_size()
        return self._all_reduce(mean, async_op=True).get_future().then(lambda done: done.value()[0])

    def all_reduce(self, values: torch.Tensor, **options: Any) -> None:
        self.others += values.nbytes
        self._all_reduce(values, **options)

    def broadcast(self, group: dist.ProcessGroup, tensors: list[torch.Tensor], *options: Any) -> None:
        self.others += sum(tensor.nbytes for tensor in tensors)
        self._broadcast(group, tensors, *options)

    def take(self) -> tuple[int, int]:
        taken, self.gradients, self.others = (self.gradients, self.others), 0, 0
        return taken


def train_and_tap() -> list[tuple[int, tuple[int, int]]]:
    """Per step, what the record says and what was given to DDP's buckets and to others."""
    job = tiny_job(Path("unused"), workers=2, batch_norm=True)
    spec = job.spec.model_copy(update={"fisher": job.spec.fisher.model_copy(update={"every": COLLECT})})
    job = job.model_copy(update={"spec": spec})
    found: list[tuple[int, tuple[int, int]]] = []
    with pytest.MonkeyPatch.context() as patch:
        tap = Tap(patch)

        def emit(event: object) -> None:
            if isinstance(event, Step):
                found.append((event.comm_bytes, tap.take()))

        policy = FisherDrift(FreezeSpec(every=DECIDE, warmup_steps=2, threshold=1.0, cap=0.9))
        trainer = Trainer(job, task_of(job), policy=policy, device=torch.device("cpu"), stop_request=lambda: None, emit=emit)
        tap.take()  # the first wrapping is no part of a step
        for _ in range(STEPS):
            trainer.step()
    return found


def test_a_step_records_the_bytes_that_were_communicated() -> None:
    first, second = run_distributed(train_and_tap, 2)
    assert first == second
    assert [recorded for recorded, _ in first] == [gradients + others for _, (gradients, others) in first]
    gradients, others = zip(*(given for _, given in first), strict=True)
    assert gradients[-1] < gradients[0]  # something is frozen
    quiet = [other for step, other in enumerate(others) if step % DECIDE]
    assert len(set(quiet)) == 1  # buffers, loss and operations
    assert others[DECIDE] == quiet[0] + (2 + 3) * 8  # one number per rank, and one per layer that could be sliced
    assert others[0] > others[DECIDE]  # statistics
    assert others[COLLECT] > others[DECIDE]
