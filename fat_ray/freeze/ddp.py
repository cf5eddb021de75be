"""A DDP wrapper made anew in its place, so that a training loop that holds it need not know."""

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def wrap_again(wrapped: nn.Module) -> None:
    """Lets a DDP wrapper communicate what its module trains now, after `Freezer.after_backward` said so.

    The wrapper stays the same object with the same options and communication hooks, but its old buckets and hooks are gone before new
    ones are made, and no weight is sent. Anything but a DDP wrapper is left alone.

    Args:
        wrapped: What the training loop calls.

    Raises:
        ValueError: The wrapper has its own mixed precision, whose hooks on the module cannot be taken back.
    """
    if not isinstance(wrapped, DistributedDataParallel):
        return
    if wrapped.mixed_precision is not None:
        raise ValueError("DistributedDataParallel(mixed_precision=...) cannot be wrapped again when tensors freeze; use torch.autocast")
    module, training, options, hooks = wrapped.module, wrapped.training, _options(wrapped), list(wrapped._comm_hooks)  # noqa: SLF001  torch has no getter
    vars(wrapped).clear()  # drops the old reducer, and with it its hooks on parameters
    DistributedDataParallel.__init__(wrapped, module, init_sync=False, **options)
    wrapped.training = training
    for hook, state in hooks:
        wrapped.register_comm_hook(state, hook)


def _options(wrapped: DistributedDataParallel) -> dict[str, Any]:
    """The arguments it was made with: it keeps most under their own names."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters.keys() - {"self", "module", "device_mesh"}
    options = {name: value for name, value in vars(wrapped).items() if name in known}
    if not wrapped.bucket_bytes_cap_default:
        options["bucket_cap_mb"] = wrapped.bucket_bytes_cap / 2**20
    return options
