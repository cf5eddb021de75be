"""Under DDP both adapters wrap again at events and follow one process on the joined batch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fat_ray.freeze.ddp import wrap_again
from tests.support.distributed import run_distributed
from tests.support.fine_tuning import BATCH, STEPS, Outcome, assert_same, examples, plain_loop

ACCUMULATED, SAVED = 2, 6
"""Micro-batches of a step; after which steps a checkpoint is saved."""


def rows_of_this_rank() -> list[dict[str, Tensor]]:
    """Such that all ranks together take the steps of `plain_loop`: they take turns within each batch."""
    rows, rank, num_ranks = examples(), dist.get_rank(), dist.get_world_size()
    return [row for first in range(0, BATCH * STEPS, BATCH) for row in rows[first + rank : first + BATCH : num_ranks]]


def as_torchrun_would() -> None:
    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(GROUP_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="0", TORCHELASTIC_RUN_ID="test")


def run_huggingface(folder: str) -> list[Outcome]:
    """A whole training, and one that goes on from its checkpoint."""
    from tests.support.huggingface import train

    as_torchrun_would()
    micro_batch = BATCH // dist.get_world_size() // ACCUMULATED
    settings = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False, "save_strategy": "steps", "save_steps": SAVED}
    outcomes = []
    for checkpoint in (None, f"{folder}/checkpoint-{SAVED}"):
        trainer, outcome = train(folder, rows_of_this_rank(), checkpoint, micro_batch=micro_batch, **settings)
        assert isinstance(trainer.model_wrapped, DistributedDataParallel)
        outcomes.append(outcome)
    return outcomes


def run_lightning(folder: str) -> list[Outcome]:
    """A whole fit, and one that goes on from its checkpoint."""
    from tests.support.lightning import fit

    as_torchrun_would()
    size = dist.get_world_size()
    settings = {"micro_batch": BATCH // size // ACCUMULATED, "devices": size, "strategy": "ddp", "save_steps": SAVED}
    outcomes = []
    for checkpoint in (None, f"{folder}/step={SAVED}.ckpt"):
        trainer, outcome = fit(folder, rows_of_this_rank(), checkpoint, **settings)
        assert trainer.world_size == size
        outcomes.append(outcome)
    return outcomes


@pytest.mark.timeout(180)  # four processes import a whole framework each
@pytest.mark.parametrize("run", [run_huggingface, run_lightning])
def test_two_ranks_follow_one_process_and_resume(run: Callable[[str], list[Outcome]], tmp_path: Path) -> None:
    (first, resumed), (second, _) = run_distributed(run, 2, str(tmp_path))
    assert_same(first, plain_loop())
    assert_same(second, first)
    assert [event.frozen for event in resumed.freezes] == [event.frozen for event in first.freezes if event.step >= SAVED]
    for key, value in first.weights.items():
        assert torch.equal(value, second.weights[key])
        assert torch.equal(value, resumed.weights[key])


def communicate() -> dict[str, Any]:
    """Trains, freezes, wraps again, trains; what the communication hook saw each time."""
    torch.manual_seed(dist.get_rank())
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=3)
    sent: list[int] = []

    def count(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.buffer().numel())
        total = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return total.then(lambda done: done.value()[0] / dist.get_world_size())

    wrapped.register_comm_hook(None, count)
    gradients = []
    for frozen in (None, model[0].weight):
        if frozen is not None:
            frozen.requires_grad_(False)
            frozen.grad = None
            wrap_again(wrapped.eval())
        with wrapped.no_sync():
            wrapped(torch.ones(3, 4)).sum().backward()
        wrapped(torch.full((3, 4), 1.0 + dist.get_rank())).sum().backward()
        gradients.append(model[1].weight.grad.clone())
    options = (wrapped.gradient_as_bucket_view, wrapped.bucket_bytes_cap, wrapped.training, wrapped.module is model)
    return {"sent": sent, "gradients": gradients, "options": options}


def test_wrapper_made_anew_sends_what_is_trained_with_the_same_options() -> None:
    first, second = run_distributed(communicate, 2)
    assert first["sent"] == [4 * 8 + 8 + 8 * 2 + 2, 8 + 8 * 2 + 2]
    assert first["options"] == (True, 3 * 2**20, False, True)
    for mine, other in zip(first["gradients"], second["gradients"], strict=True):
        assert torch.equal(mine, other)


def test_own_mixed_precision_of_ddp_is_refused() -> None:
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.mixed_precision = object()
    with pytest.raises(ValueError, match=r"use torch\.autocast"):
        wrap_again(wrapped)
