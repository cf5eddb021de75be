"""The fine-tuning problem in Lightning."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fat_ray.freeze.lightning import FreezeCallback
from tests.support.fine_tuning import BATCH, CLIP, SPEC, STEPS, Classifier, Outcome, examples, learning_rate_factor, optimizer_of


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


def make(folder: str | Path, callback: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    arguments = {"default_root_dir": str(folder), "accelerator": "cpu", "max_steps": STEPS, "gradient_clip_val": CLIP, **quiet}
    return pl.Trainer(callbacks=[callback], use_distributed_sampler=False, **(arguments | settings))


def fit(
    folder: str | Path,
    rows: list[dict[str, Tensor]] | None = None,
    *,
    micro_batch: int = BATCH // 2,
    kind: type[torch.optim.AdamW] = torch.optim.AdamW,
    **settings: Any,
) -> tuple[pl.Trainer, Outcome]:
    """A whole fit with the callback."""
    rows, outcome, module = rows or examples(), Outcome(), Module(kind)
    trainer = make(folder, FreezeCallback(SPEC, emit=outcome.emit), accumulate_grad_batches=len(rows) // STEPS // micro_batch, **settings)
    trainer.fit(module, DataLoader(rows, micro_batch))
    return trainer, outcome.keep(module.network)
