"""The fine-tuning problem in the Hugging Face Trainer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments

from fat_ray.freeze.huggingface import FreezeCallback
from tests.support.fine_tuning import (
    BATCH,
    CLIP,
    DECAY,
    LR,
    SPEC,
    STEPS,
    WARMUP,
    Classifier,
    Outcome,
    examples,
    learning_rate_factor,
    optimizer_of,
)


class InOrder(Trainer):
    """Sees the examples in order; each rank gets the rows it was given."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, self.args.per_device_train_batch_size, sampler=SequentialSampler(self.train_dataset))


def make(folder: str | Path, rows: list[dict[str, Tensor]] | None = None, *, micro_batch: int = BATCH // 2, **settings: Any) -> Trainer:
    rows = rows or examples()
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": max(1, len(rows) // STEPS // micro_batch),
        "max_grad_norm": CLIP,
        "learning_rate": LR,
        "weight_decay": DECAY,
        "lr_scheduler_type": "linear",
        "warmup_steps": WARMUP,
        "max_steps": STEPS,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return InOrder(model=Classifier(), args=TrainingArguments(**(arguments | settings)), train_dataset=rows)


def with_optimizer(trainer: Trainer, kind: type[torch.optim.AdamW]) -> Trainer:
    """With an optimizer and a schedule of its user."""
    trainer.optimizer = optimizer_of(trainer.model, kind)
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, learning_rate_factor)
    return trainer


def train(
    folder: str | Path,
    rows: list[dict[str, Tensor]] | None = None,
    checkpoint: str | bool | None = None,
    *,
    spec: dict[str, Any] = SPEC,
    **settings: Any,
) -> tuple[Trainer, Outcome]:
    """A training with the callback, from the start or from a checkpoint."""
    trainer, outcome = make(folder, rows, **settings), Outcome()
    trainer.add_callback(FreezeCallback(trainer, spec, emit=outcome.emit))
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, outcome.keep(trainer.model)
