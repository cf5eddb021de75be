"""The fine-tuning problem in Lightning."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fat_ray.freeze.lightning import FreezeCallback
from tests.support.fine_tuning import BATCH, CLIP, SPEC, STEPS, Classifier, Outcome, examples, joined, learning_rate_factor, optimizer_of


class Batches:
    """A loader that goes on where it was, as Lightning asks of one whose epoch shall be resumed in its midst."""

    def __init__(self, rows: list[dict[str, Tensor]], size: int) -> None:
        self.batches = [joined(rows[first : first + size]) for first in range(0, len(rows), size)]
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.batches[self.position :]:
            self.position += 1
            yield batch
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Module(pl.LightningModule):
    def __init__(self, kind: type[torch.optim.AdamW] = torch.optim.AdamW) -> None:
        super().__init__()
        self.network = Classifier()
        self.kind = kind

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss: Tensor = self.network(**batch)["loss"]
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self, self.kind)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make(folder: str | Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    arguments = {"default_root_dir": str(folder), "accelerator": "cpu", "max_steps": STEPS, "gradient_clip_val": CLIP, **quiet}
    return pl.Trainer(callbacks=list(callbacks), use_distributed_sampler=False, **(arguments | settings))


def fit(
    folder: str | Path,
    rows: list[dict[str, Tensor]] | None = None,
    checkpoint: str | Path | None = None,
    *,
    micro_batch: int = BATCH // 2,
    spec: dict[str, Any] = SPEC,
    kind: type[torch.optim.AdamW] = torch.optim.AdamW,
    save_steps: int = STEPS,
    **settings: Any,
) -> tuple[pl.Trainer, Outcome]:
    """A fit with the callback, from the start or from a checkpoint."""
    rows, outcome, module = rows or examples(), Outcome(), Module(kind)
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=save_steps, save_top_k=-1)
    freeze = FreezeCallback(spec, emit=outcome.emit)
    settings |= {"accumulate_grad_batches": len(rows) // STEPS // micro_batch, "enable_checkpointing": True}
    trainer = make(folder, freeze, saving, **settings)
    trainer.fit(module, Batches(rows, micro_batch), ckpt_path=checkpoint)
    return trainer, outcome.keep(module.network)
