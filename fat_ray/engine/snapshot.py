"""The state of training between two steps as files in a directory: all arrays are safetensors, all else JSON.

- ``model.safetensors``: the state dict of the model; ``buffers.safetensors``: its buffers that are not in the state dict
- ``merged.safetensors``, where the model has adapters: the state dict that it has with them merged
- ``optimizer.safetensors``: per run of entries, see `freeze.optimizer_state`
- ``freezer.safetensors``: counters, active set, drift history, Fisher statistics
- ``rank-0.safetensors``, …: random generators of the rank, and the element-wise averages that it keeps

Learning rate and position of the sampler are functions of the step.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor, nn

from fat_ray.engine.rng import rng_state, set_rng_state
from fat_ray.engine.step import Trainer
from fat_ray.errors import RecordError
from fat_ray.fisher.flat import prefixed
from fat_ray.fisher.reduce import world
from fat_ray.fisher.state import Floats32
from fat_ray.freeze.lora import plain_model
from fat_ray.freeze.optimizer_state import OptimizerState
from fat_ray.records.files import sync

MODEL, _BUFFERS, _OPTIMIZER, _FREEZER = (f"{name}.safetensors" for name in ("model", "buffers", "optimizer", "freezer"))
MERGED = "merged.safetensors"
_AVERAGE = "average"


def write_rank(folder: Path, trainer: Trainer) -> None:
    """Writes what this rank alone knows."""
    arrays, numbers = rng_state(trainer.device)
    own = {**prefixed("rng", arrays), **prefixed(_AVERAGE, trainer.freezer.meter.share())}
    path = folder / _rank_file(world()[0])
    # safetensors writes memory as it stands, and gradients of a model in channels last stand otherwise
    save_arrays({name: np.asarray(array, order="C") for name, array in own.items()}, path, {"rng": json.dumps(numbers)})
    if world()[0] > 0:  # the first rank's are waited for, all at once, when the checkpoint is sealed
        sync(path)


def write_shared(folder: Path, trainer: Trainer) -> dict[str, Any]:
    """Writes what is equal on all ranks; to be called on the first.

    Returns:
        What of it is no array, as JSON types, for `read`.
    """
    optimizer = trainer.freezer.entries.optimizer_state()
    save_tensors(_plain(trainer.model.state_dict()), folder / MODEL, {"format": "pt"})
    plain = plain_model(trainer.model)
    if plain is not trainer.model:
        save_tensors(_plain(plain.state_dict()), folder / MERGED, {"format": "pt"})
    save_tensors(_plain(_other_buffers(trainer.model)), folder / _BUFFERS)
    save_tensors(_plain(optimizer.tensors), folder / _OPTIMIZER)
    save_arrays({name: array.copy(order="C") for name, array in trainer.freezer.state().items()}, folder / _FREEZER)
    return optimizer.plain


def read(folder: Path, trainer: Trainer, plain: dict[str, Any], *, world_size: int) -> None:
    """Brings a new trainer to the state that was written.

    Args:
        folder: Where.
        trainer: Of the same job, before its first step.
        plain: What `write_shared` returned.
        world_size: Number of ranks that wrote; this may be one of another number, which then share the work anew.

    Raises:
        RecordError: The model, its groups or its optimizer are not those that were saved.
    """
    with ExitStack() as files:
        opened = [files.enter_context(safe_open(folder / _rank_file(rank), "np")) for rank in range(world_size)]
        try:
            trainer.model.load_state_dict(load_tensors(folder / MODEL))
            _load_buffers(trainer.model, load_tensors(folder / _BUFFERS))
            if trainer.freezer.load_state(load_arrays(folder / _FREEZER), _averages(opened)):
                trainer.rewrap()
            trainer.freezer.entries.load_optimizer_state(OptimizerState(load_tensors(folder / _OPTIMIZER), plain))
        except (RuntimeError, ValueError, KeyError) as error:
            raise RecordError(f"{folder} does not fit the task, which has changed since: {' '.join(str(error).split())}") from error
        rank = world()[0]
        if rank < world_size:
            arrays = {name: opened[rank].get_tensor(f"rng/{name}") for name in _names(opened[rank], "rng")}
            set_rng_state(arrays, json.loads(opened[rank].metadata()["rng"]), trainer.device)
        else:  # a rank that was not there before
            torch.manual_seed(int(np.random.SeedSequence((trainer.order.seed, 2, rank, trainer.freezer.step)).generate_state(1)[0]))


def _averages(opened: list[Any]) -> Mapping[str, Callable[[], Floats32]]:
    """Element-wise averages of all ranks by number of their group, read on demand."""
    return {index: partial(file.get_tensor, f"{_AVERAGE}/{index}") for file in opened for index in _names(file, _AVERAGE)}


def _names(opened: Any, prefix: str) -> list[str]:
    return [name.removeprefix(f"{prefix}/") for name in opened.keys() if name.startswith(f"{prefix}/")]  # noqa: SIM118 - no mapping


def _rank_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, contiguous, none sharing memory with another, as safetensors wants them.

    Raises:
        RecordError: One is no tensor: an extra state of a module could be anything.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise RecordError(f"{name} of the model's state is a {type(value).__name__}; a checkpoint holds tensors only")
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _other_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if name not in model.state_dict()}


def _load_buffers(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    for name, value in saved.items():
        model.get_buffer(name).copy_(value)
