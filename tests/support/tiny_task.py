"""A task that trains in milliseconds, and goes wrong when told to: for tests of everything around training."""

import functools
import gc
import os
import random
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fat_ray.tasks.base import Batch, Direction

TINY_TASK = "tests.support.tiny_task:make_task"
SIZE = 8
"""Height and width of the images."""
ALL_RANKS = -1
_LITTER: list[Tensor] = []
"""What the tiny task remembers of the runs of its process, unless this module forgets."""


class TinyExamples:
    """Random images; the label is whether the left half is brighter than the right."""

    def __init__(self, num_examples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._images = torch.randn(num_examples, 1, SIZE, SIZE, generator=generator)
        self._labels = (self._images[..., : SIZE // 2].sum((1, 2, 3)) > self._images[..., SIZE // 2 :].sum((1, 2, 3))).float()

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        rows = list(indices)
        return self._images[rows], self._labels[rows]


class TinyTask:
    """See `make_task`."""

    metrics: Mapping[str, Direction] = {"f1": "maximize", "loss": "minimize"}

    def __init__(self, *, batch_norm: bool, dropout: float, noise: bool, trouble: dict[int, str], trouble_rank: int, slow_s: float) -> None:
        self._batch_norm = batch_norm
        self._dropout = dropout
        self._noise = noise
        self._trouble = trouble
        self._trouble_rank = trouble_rank
        self._slow_s = slow_s
        self._step = 0

    def build_model(self) -> nn.Module:
        norm = nn.BatchNorm2d(8) if self._batch_norm else nn.Identity()
        layers = (nn.Conv2d(1, 8, 3, padding=1), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(self._dropout))
        return nn.Sequential(*layers, nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, 1))

    def train_set(self) -> TinyExamples:
        return TinyExamples(32, seed=1)

    def evaluation_sets(self) -> Mapping[str, TinyExamples]:
        return {"val": TinyExamples(16, seed=2), "test": TinyExamples(16, seed=3)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        if self._noise:
            images = images * (1 + 0.1 * random.random() + 0.1 * np.random.random())  # noqa: NPY002 - the global one is meant
        loss = functional.binary_cross_entropy_with_logits(model(images).squeeze(1), labels) + len(_LITTER)
        time.sleep(self._slow_s)
        trouble = self._trouble.get(self._step) if self._trouble_rank in (_rank(), ALL_RANKS) else None
        self._step += 1
        return _make(trouble, loss) if trouble else loss

    def accumulate(self, model: nn.Module, batch: Batch) -> Mapping[str, float]:
        images, labels = batch
        logits = model(images).squeeze(1)
        guess = (logits > 0).float()
        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        hits, errors = (guess * labels).sum(), (guess != labels).sum()
        return {"loss": float(loss), "hits": float(hits), "errors": float(errors), "count": float(len(labels))}

    def finish(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"f1": 2 * sums["hits"] / max(1.0, 2 * sums["hits"] + sums["errors"]), "loss": sums["loss"] / sums["count"]}


def make_task(
    *,
    batch_norm: bool = False,
    dropout: float = 0.1,
    noise: bool = False,
    trouble: Mapping[str, str] | None = None,
    trouble_rank: int = 0,
    slow_s: float = 0.0,
    fail: str = "",
) -> TinyTask:
    """A small convolutional network on random images.

    Args:
        batch_norm: Whether the convolution is followed by BatchNorm.
        dropout: So that torch's global generator matters.
        noise: Whether Python's and NumPy's matter too.
        trouble: Step (as a string, for JSON) to what goes wrong there: ``nan``, ``raise``, ``kill``, ``kill:PATH`` or
            ``freeze:PATH`` (unless this file is there, which is made), ``hang``, ``litter`` (leaves everything behind that
            `_litter` can think of, and the loss as it is), ``settings`` (likewise `_change_settings`), ``file:PATH`` (makes a
            file), or ``env:NAME`` (raises an error that shows this environment variable).
        trouble_rank: The rank on which it does, or `ALL_RANKS`.
        slow_s: Seconds added to each step.
        fail: Message of an error raised at once, or ``env:NAME`` as above; empty: none.
    """
    if fail.startswith("env:"):
        _reveal(fail)
    if fail:
        raise ValueError(fail)
    steps = {int(step): what for step, what in (trouble or {}).items()}
    return TinyTask(batch_norm=batch_norm, dropout=dropout, noise=noise, trouble=steps, trouble_rank=trouble_rank, slow_s=slow_s)


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _make(trouble: str, loss: Tensor) -> Tensor:
    match trouble:
        case "nan":
            return loss * float("nan")
        case "raise":
            raise KeyError("the tiny task was told to raise")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case _ if trouble.startswith("kill:"):
            _signal_once(signal.SIGKILL, Path(trouble.removeprefix("kill:")))
        case _ if trouble.startswith("freeze:"):
            _signal_once(signal.SIGSTOP, Path(trouble.removeprefix("freeze:")))
        case "hang":
            time.sleep(3600)
        case "litter":
            _litter()
        case "settings":
            _change_settings()
        case _ if trouble.startswith("env:"):
            _reveal(trouble)
        case _:
            Path(trouble.removeprefix("file:")).touch()
    return loss


def _signal_once(number: signal.Signals, witness: Path) -> None:
    if not witness.exists():
        witness.touch()
        os.kill(os.getpid(), number)


def _reveal(variable: str) -> None:
    raise ValueError(f"{os.environ[variable.removeprefix('env:')]} was refused")


def _change_settings() -> None:
    """Settings that a careless task leaves behind in its process: any of them would change the numbers of a run that found it."""
    os.environ["TINY_TASK_WAS_HERE"] = "1"
    os.chdir("/")
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(mode=True)
    torch.autograd.set_detect_anomaly(mode=True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.enabled = False
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(12345)
    gc.disable()
    warnings.simplefilter("error")
    nn.modules.module.register_module_forward_hook(lambda module, _, output: output * 1.5 if isinstance(module, nn.ReLU) else None)
    register_optimizer_step_pre_hook(lambda optimizer, *_: [group.update(lr=0.5) for group in optimizer.param_groups] and None)


def _litter() -> None:
    """What else it leaves behind: patched code and objects."""
    _change_settings()
    true_loss = functional.binary_cross_entropy_with_logits
    functional.binary_cross_entropy_with_logits = functools.wraps(true_loss)(lambda *_, **__: torch.zeros(()))
    nn.Dropout.forward = lambda _, x: x
    _LITTER.append(torch.ones(1))
