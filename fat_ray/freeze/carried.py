"""What a Freezer knows as one set of arrays, for the checkpoints of trainers that let one rank write."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist

from fat_ray.errors import InputError
from fat_ray.fisher.flat import Arrays, below, prefixed
from fat_ray.fisher.reduce import world
from fat_ray.freeze.freezer import Freezer


def gather_state(freezer: Freezer) -> Arrays:
    """The state of a Freezer with what each rank alone holds of it; to be called on all ranks between two steps."""
    shares: list[Any] = [freezer.meter.share()]
    num_ranks = world(freezer.ranks)[1]
    if num_ranks > 1:
        shares = [None] * num_ranks
        dist.all_gather_object(shares, freezer.meter.share(), group=freezer.ranks)
    every_share: Arrays = {index: average for share in shares for index, average in share.items()}
    return {"groups": np.array(len(freezer.groups)), **prefixed("freezer", freezer.state()), **prefixed("share", every_share)}


def load_gathered(freezer: Freezer, arrays: Arrays, source: str) -> bool:
    """Lets a new Freezer go on from `gather_state`, also on another number of ranks; the weights must be loaded before.

    Args:
        freezer: Of the same model and specification, before its first step.
        arrays: What `gather_state` returned.
        source: Where they are from, for the error.

    Returns:
        Whether tensors left autograd, as `Freezer.after_backward`.

    Raises:
        InputError: The arrays are those of other groups.
    """
    saved, present = int(arrays["groups"]), len(freezer.groups)
    if saved != present:
        raise InputError(f"{source} was saved with {saved} groups, and this model has {present}: give the same model and fisher.groups")
    shares: Mapping[str, Any] = {index: partial(arrays.__getitem__, f"share/{index}") for index in below("share", arrays)}
    return freezer.load_state(below("freezer", arrays), shares)
