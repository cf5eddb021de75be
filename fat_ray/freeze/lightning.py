"""Freezing in the Lightning Trainer (extra `lightning`; the package `pytorch_lightning` will do as well).

trainer = lightning.Trainer(max_steps=1000, callbacks=[FreezeCallback({"fisher": {"every": 10}, "freeze": {"every": 50}})])
trainer.fit(module, examples)
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.data import extract_batch_size
except ImportError:
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.utilities.data import extract_batch_size

from fat_ray.errors import InputError
from fat_ray.fisher.collector import Share
from fat_ray.fisher.flat import Arrays
from fat_ray.fisher.reduce import world
from fat_ray.freeze.carried import gather_state, load_gathered
from fat_ray.freeze.ddp import wrap_again
from fat_ray.freeze.freezer import Emit, Freezer
from fat_ray.freeze.policy import Policy
from fat_ray.spec.run import MethodSpec


class FreezeCallback(Callback):  # type: ignore[misc]  # lightning is optional, so mypy does not follow it
    """Freezes while a Trainer fits, exactly as `Freezer` does in a loop of its own.

    With `accumulate_grad_batches` the statistics are those of the joined batch; its micro-batches are taken to be of the first one's size.
    Under DDP the wrapper is made anew, in its place, at each event. `freeze/active_fraction` is logged at every batch, for a logger that
    looks only at some. The freeze state is part of Lightning's checkpoints.

    Args:
        spec: How drift is measured and who decides, as for `Freezer`.
        policy: Who decides instead of the policy that `spec` names.
        seed: Of policies that choose at random.
        emit: Receives what was measured and decided, and what is remembered.

    Attributes:
        freezer: None before the fit.
    """

    def __init__(
        self,
        spec: MethodSpec | Mapping[str, Any],
        *,
        policy: Policy | None = None,
        seed: int = 0,
        emit: Emit | None = None,
    ) -> None:
        self.freezer: Freezer | None = None
        self._make = partial(Freezer, spec=spec, policy=policy, seed=seed, emit=emit)
        self._first_size = 0
        self._loaded: Arrays | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the Freezer: the optimizer is there, and a checkpoint's weights are, but not yet its optimizer state.

        Raises:
            InputError: The fit is set up in a way that freezing does not support.
        """
        _check(trainer, pl_module)
        steps = trainer.estimated_stepping_batches
        self.freezer = self._make(pl_module, trainer.optimizers[0], steps=int(steps) if math.isfinite(steps) else None)
        if trainer.ckpt_path is None:
            return
        if self._loaded is None:
            raise InputError(f"{trainer.ckpt_path} was saved without FreezeCallback: load its weights and begin anew")
        arrays, self._loaded = self._loaded, None
        if load_gathered(self.freezer, arrays, str(trainer.ckpt_path)):
            wrap_again(trainer.strategy.model)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What Lightning's checkpoints hold of this callback; called on all ranks."""
        return {} if self.freezer is None else {name: torch.tensor(array) for name, array in gather_state(self.freezer).items()}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Keeps what a checkpoint holds until the Freezer is made."""
        self._loaded = {name: tensor.numpy() for name, tensor in state_dict.items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  the signature of a callback
        """Arms before the forward of a micro-batch."""
        assert self.freezer is not None
        size, accumulated = extract_batch_size(batch), trainer.accumulate_grad_batches
        position = batch_idx % accumulated
        if position == 0:
            self._first_size = size
        num_batches = max(position + 1, int(min(accumulated, trainer.num_training_batches - batch_idx + position)))
        local, (rank, num_ranks) = self._first_size * (num_batches - 1) + size, world()
        self.freezer.arm(Share(local, rank, num_ranks, first=self._first_size * position, size=size, backward_over=size * accumulated))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Freezes: all gradients are there, and Lightning clips them after this."""
        assert self.freezer is not None
        if self.freezer.after_backward():
            wrap_again(trainer.strategy.model)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        """Logs what fraction of the elements is active."""
        assert self.freezer is not None
        entries = self.freezer.entries
        pl_module.log("freeze/active_fraction", entries.active_elements / int(entries.elements.sum()))


def _check(trainer: Trainer, module: LightningModule) -> None:
    if not module.automatic_optimization:
        raise InputError(
            "FreezeCallback does not support automatic_optimization = False; use fat_ray.freeze.freezer.Freezer in your training_step"
        )
    if len(trainer.optimizers) != 1 or isinstance(trainer.optimizers[0], torch.optim.LBFGS):
        names = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        raise InputError(f"FreezeCallback needs one optimizer that steps once per batch, not {names} from configure_optimizers")
    if (strategy := type(trainer.strategy).__name__) not in ("DDPStrategy", "SingleDeviceStrategy"):
        raise InputError(f"FreezeCallback works on one device and with strategy = ddp, not with {strategy}")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise InputError(f"FreezeCallback does not support precision = {trainer.precision}; use bf16-mixed")
