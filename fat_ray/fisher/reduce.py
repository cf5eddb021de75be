"""Adds what ranks have collected, in one flat all-reduce, and the small agreements between ranks."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fat_ray.errors import RankDisagreementError
from fat_ray.fisher.collector import Key, Sums


class Totals(dict[Key, tuple[NDArray[np.float64], float]]):
    """(layer, part, half) to the sum over the global batch and its count.

    Attributes:
        finite: Whether all sums are, in float32, as all ranks see alike.
    """

    finite = True


Ranks = dist.ProcessGroup | None
"""The ranks that train one model; None: all there are."""


def world(ranks: Ranks = None) -> tuple[int, int]:
    """(rank among them, their number); (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(ranks), dist.get_world_size(ranks)
    return 0, 1


@dataclass
class Traffic:
    """Bytes that this process has given to the collectives of this module so far."""

    num_bytes: int = 0


traffic = Traffic()


def all_sum(values: Tensor, ranks: Ranks = None) -> Tensor:
    """The sum over all ranks, in place; bit-equal on every rank."""
    if world(ranks)[1] > 1:
        traffic.num_bytes += values.nbytes
        dist.all_reduce(values, group=ranks)
    return values


def reduce_sums(sums: Sums, device: torch.device, ranks: Ranks = None) -> Totals:
    """Sums and counts over all ranks, by one all-reduce of a flat float64 bucket (sums, then counts).

    Every rank must have collected the same layers, see `check_layout`.

    Args:
        sums: What this rank's collector took.
        device: Where the collective runs.
        ranks: Between whom.
    """
    totals = Totals()
    if not sums:
        return totals
    counts = torch.tensor([float(count) for _, count in sums.values()], dtype=torch.float64, device=device)
    # counts are float64, and so is what they are joined with
    flat = all_sum(torch.cat([*(value.flatten() for value, _ in sums.values()), counts]), ranks).cpu().numpy()
    largest = np.finfo(np.float32).max
    totals.finite = bool(-largest <= flat.min() and flat.max() <= largest)
    start = 0
    for (key, (value, _)), count in zip(sums.items(), flat[flat.size - len(sums) :].tolist(), strict=True):
        totals[key] = flat[start : start + value.numel()].reshape(value.shape), count
        start += value.numel()
    return totals


def check_agreement(what: str, payload: bytes, device: torch.device, ranks: Ranks = None) -> None:
    """Raises on every rank if the payload of any rank differs.

    Args:
        what: Named in the error, such as ``freeze decision at step 24``.
        payload: The bytes that must be equal everywhere.
        device: Where the collective runs.
        ranks: Between whom.

    Raises:
        RankDisagreementError: Names the ranks that differ from rank 0.
    """
    rank, size = world(ranks)
    if size == 1:
        return
    digest = int.from_bytes(hashlib.sha256(payload).digest()[:8], "little", signed=True)
    digests = torch.zeros(size, dtype=torch.int64, device=device)
    digests[rank] = digest
    values = all_sum(digests, ranks).tolist()
    others = [str(other) for other, value in enumerate(values) if value != values[0]]
    if others:
        raise RankDisagreementError(f"{what}: rank {', '.join(others)} disagrees with rank 0; the run was stopped before it could diverge")


def check_layout(sums: Sums, step: int, device: torch.device, ranks: Ranks = None) -> None:
    """Raises on every rank if one has collected other layers, parts or shapes, which would add up nonsense or wait for ever.

    What is collected changes only when groups freeze: checked at the first collection and after each event, it costs one number per rank.

    Raises:
        RankDisagreementError: Names the ranks that differ from rank 0.
    """
    layout = [(key, tuple(value.shape)) for key, (value, _) in sums.items()]
    check_agreement(f"layers with statistics at step {step}", repr(layout).encode(), device, ranks)
