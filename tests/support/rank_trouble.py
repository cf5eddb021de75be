"""The tiny task on a rank that leaves without a word, in the middle of a backward, where the others wait for it in a collective."""

import os

import torch
from torch import Tensor, nn

from fat_ray.tasks.base import Batch
from tests.support.tiny_task import TinyTask

LEAVING_TASK = "tests.support.rank_trouble:make_leaving_task"


class LeavingTask(TinyTask):
    """See `make_leaving_task`."""

    def __init__(self, leaving_rank: int, step: int, exit_code: int) -> None:
        super().__init__(batch_norm=False, dropout=0.0, noise=False, trouble={}, trouble_rank=0, slow_s=0.0)
        self._leaving_rank, self._leaving_step, self._exit_code = leaving_rank, step, exit_code

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = super().loss(model, batch)
        if self._step > self._leaving_step and torch.distributed.get_rank() == self._leaving_rank:
            # DDP reduces gradients while they are computed: the first parameter is the last one
            first = next(model.parameters())
            first.register_hook(lambda _: os._exit(self._exit_code))
        return loss


def make_leaving_task(*, rank: int, step: int, exit_code: int) -> LeavingTask:
    """A run of which one process ends itself.

    Args:
        rank: Which.
        step: In the backward of which step.
        exit_code: What it leaves behind; 0 looks like success.
    """
    return LeavingTask(rank, step, exit_code)
