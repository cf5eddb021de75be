"""Freezing in the Hugging Face Trainer (extra `huggingface`).

trainer = Trainer(model=model, args=arguments, train_dataset=examples)
trainer.add_callback(FreezeCallback(trainer, {"fisher": {"every": 10}, "freeze": {"every": 50}}))
trainer.train()

The Trainer clips gradients before it calls any callback, so a callback alone comes too late: four public methods of the given trainer
are extended too. `create_optimizer` makes the Freezer, `get_batch_samples` tells how many examples a step has, `training_step` arms
before each micro-batch and freezes after the last, before clipping, and `train` notes the checkpoint to resume from.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import DistributedType, find_batch_size
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from fat_ray.errors import InputError
from fat_ray.events import Drift, Freeze, Notice
from fat_ray.fisher.collector import Share
from fat_ray.fisher.reduce import world
from fat_ray.freeze.carried import gather_state, load_gathered
from fat_ray.freeze.ddp import wrap_again
from fat_ray.freeze.freezer import Emit, Freezer
from fat_ray.freeze.policy import Policy
from fat_ray.spec.run import MethodSpec

STATE_FILE = "freezer.safetensors"
"""What the Freezer knows, in the Trainer's checkpoints."""

_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class FreezeCallback(TrainerCallback):  # type: ignore[misc]  # transformers is optional, so mypy does not follow it
    """Freezes while a Trainer trains, exactly as `Freezer` does in a loop of its own.

    With gradient accumulation the statistics are those of the joined batch. Under DDP the wrapper is made anew, in its place, at each
    event. What freezes is logged as `freeze/active_fraction` and `freeze/active_groups`.

    Args:
        trainer: The trainer that it is added to.
        spec: How drift is measured and who decides, as for `Freezer`.
        policy: Who decides instead of the policy that `spec` names.
        seed: Of policies that choose at random.
        emit: Receives what was measured and decided, and what is remembered.

    Attributes:
        freezer: None before the Trainer has made its optimizer.

    Raises:
        InputError: The trainer is set up in a way that freezing does not support.
    """

    def __init__(
        self,
        trainer: Trainer,
        spec: MethodSpec | Mapping[str, Any],
        *,
        policy: Policy | None = None,
        seed: int = 0,
        emit: Emit | None = None,
    ) -> None:
        _check(trainer)
        self.freezer: Freezer | None = None
        self._trainer, self._emit = trainer, emit
        self._make = partial(Freezer, spec=spec, policy=policy, seed=seed, emit=self._note)
        self._sizes: list[int] = []
        self._done = 0
        self._event: Freeze | None = None
        self._resumed: Path | None = None
        for name in ("train", "create_optimizer", "get_batch_samples", "training_step"):
            setattr(trainer, name, partial(getattr(self, f"_{name}"), getattr(trainer, name)))

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002  the signature of a callback
        """Logs an event; not in `on_step_end`, where logging would cancel the Trainer's own."""
        if self._event is not None:
            assert self.freezer is not None
            fraction = self._event.active_elements / int(self.freezer.entries.elements.sum())
            self._trainer.log({"freeze/active_fraction": fraction, "freeze/active_groups": self._event.active_groups})
            self._event = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Writes `freezer.safetensors` into the checkpoint that the Trainer has just written."""
        if args.save_only_model or state.is_hyper_param_search:
            return
        assert self.freezer is not None
        arrays = {name: np.require(array, requirements="C") for name, array in gather_state(self.freezer).items()}
        if args.should_save:
            save_file(arrays, Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE)

    def _note(self, event: Drift | Freeze | Notice) -> None:
        if isinstance(event, Freeze):
            self._event = event
        if self._emit is not None:
            self._emit(event)

    def _train(self, train: Callable[..., Any], resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Notes the checkpoint that the Trainer will resume from."""
        found = get_last_checkpoint(self._trainer.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        self._resumed = Path(found) / STATE_FILE if found else None
        return train(resume_from_checkpoint, *args, **kwargs)

    def _create_optimizer(self, create_optimizer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Makes the Freezer while model and optimizer are still as the user knows them: on their device, not yet wrapped.

        The Trainer has loaded a checkpoint's weights before this, and loads its optimizer state after it.
        """
        before = self._trainer.optimizer
        optimizer = create_optimizer(*args, **kwargs)
        if self.freezer is None or before is None:
            self.freezer = self._make(self._trainer.model, optimizer, steps=self._trainer.state.max_steps)
        if self._resumed is not None:
            self._resume(self.freezer, self._resumed)
        return optimizer

    def _resume(self, freezer: Freezer, path: Path) -> None:
        if freezer.step:
            raise InputError("FreezeCallback resumes with a new Trainer and a new model only: this one has trained already")
        if not path.is_file():
            raise InputError(f"{path} does not exist: the checkpoint was saved without FreezeCallback; load its weights and begin anew")
        load_gathered(freezer, load_file(path), str(path))

    def _get_batch_samples(self, get_batch_samples: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Notes the examples of each micro-batch of the coming step."""
        batches, num_items = get_batch_samples(*args, **kwargs)
        self._sizes, self._done = [_num_examples(batch) for batch in batches], 0
        return batches, num_items

    def _training_step(
        self, training_step: Callable[..., Tensor], model: nn.Module, inputs: Any, num_items_in_batch: Any = None, *args: Any
    ) -> Tensor:
        assert self.freezer is not None
        self.freezer.arm(self._share(is_mean_of_step=self._loss_is_scaled(num_items_in_batch)))
        loss = training_step(model, inputs, num_items_in_batch, *args)
        self._done += 1
        if self._trainer.accelerator.sync_gradients and self.freezer.after_backward():
            wrap_again(self._trainer.model_wrapped)
        return loss

    def _share(self, *, is_mean_of_step: bool) -> Share:
        """What the next micro-batch covers: the Trainer backpropagates a mean over the step, or each micro-batch's own by their number."""
        local, first, size = sum(self._sizes), sum(self._sizes[: self._done]), self._sizes[self._done]
        rank, num_ranks = world()
        backward_over = local if is_mean_of_step else size * len(self._sizes)
        return Share(local, rank, num_ranks, first=first, size=size, backward_over=backward_over)

    def _loss_is_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether the Trainer takes the loss for normalised over all micro-batches of the step (as in its `training_step`)."""
        trainer = self._trainer
        declared: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)
        if declared is not None:
            return declared
        return (trainer.model_accepts_loss_kwargs and num_items_in_batch is not None) or trainer.compute_loss_func is not None


def _num_examples(batch: Any) -> int:
    try:
        return int(find_batch_size(batch))
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"FreezeCallback cannot tell how many examples a batch has: {error}; give tensors with examples in front"
        ) from None


def _check(trainer: Trainer) -> None:
    args, accelerator = trainer.args, trainer.accelerator
    if accelerator.distributed_type not in _SUPPORTED:
        raise InputError(f"FreezeCallback works in one process and under DDP, not with {accelerator.distributed_type}")
    if args.n_gpu > 1:
        raise InputError(
            f"FreezeCallback does not support DataParallel, which args.n_gpu = {args.n_gpu} means; start one process per GPU with torchrun"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise InputError(f"FreezeCallback does not support mixed precision {accelerator.mixed_precision}; use bf16")
    if args.auto_find_batch_size:
        raise InputError(
            "FreezeCallback does not support args.auto_find_batch_size = True, which begins again with a new optimizer; give the batch size"
        )
    if args.torch_compile and accelerator.num_processes > 1:
        raise InputError("FreezeCallback does not support args.torch_compile = True with several processes; compile or use DDP, not both")
