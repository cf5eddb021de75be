"""The mean gradient of a step over its global batch, as statistics and policies need it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fat_ray.fisher.collector import Share
from fat_ray.fisher.groups import Group
from fat_ray.freeze.entries import ActiveEntries

Floats = NDArray[np.float64]


class MeanGradients:
    """Reads gradients after backward, loss scale and the number of micro-batches divided out; bit-equal on all ranks where gradients are.

    Args:
        entries: Whose gradients.
        groups: The groups of `entries`.
    """

    def __init__(self, entries: ActiveEntries, groups: list[Group]) -> None:
        self._entries, self._num_groups, self._divisor = entries, len(groups), 1.0
        self._members: dict[str, list[tuple[int, tuple[slice, ...]]]] = {}
        for number, group in enumerate(groups):
            for member in group.members:
                self._members.setdefault(member.parameter, []).append((number, member.index))

    def arm(self, share: Share) -> None:
        """Notes what the gradients of the coming backward have to be divided by."""
        self._divisor = share.loss_scale * (share.local / share.backward_over if share.backward_over else 1.0)

    def squares(self, parameter: str) -> Floats:
        """The square of each entry, in float64.

        Args:
            parameter: Its name; some of it must be active.
        """
        found: Floats = self._mean(parameter).square().contiguous().cpu().numpy()  # sums over it shall not depend on its layout
        return found

    def norms(self) -> Floats:
        """Per group, the L2 norm; NaN for frozen groups."""
        squares: list[list[Tensor]] = [[] for _ in range(self._num_groups)]
        for parameter, members in self._members.items():
            if any(self._entries.active[number] for number, _ in members):
                mean = self._mean(parameter)
                for number, index in members:
                    squares[number].append(mean[index].square().sum())
        active = np.flatnonzero(self._entries.active).tolist()
        norms = np.full(len(squares), np.nan)
        norms[active] = torch.stack([torch.stack(squares[number]).sum() for number in active]).sqrt().cpu().numpy()  # one transfer
        return norms

    def _mean(self, parameter: str) -> Tensor:
        return self._entries.gradient(parameter).double() / self._divisor
