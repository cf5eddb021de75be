"""From collected means to one distance per group, equal on every rank: the running averages, the previous state, and who computes what."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fat_ray.fisher.drift import js_distance
from fat_ray.fisher.factors import CONVOLUTIONS, has_factors
from fat_ray.fisher.groups import Group, Rows
from fat_ray.fisher.reduce import Means, all_sum, world
from fat_ray.spec.run import DriftSpec, FisherSpec

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class DriftMeter:
    """Measures how far each group's Fisher distribution moved since the previous collection.

    Only factors are kept (inputs + outputs per layer), never a matrix: a group's values are formed when it is compared. Parameters
    outside layers with factors keep their mean squared gradient instead. Each rank compares a share of the groups.

    Args:
        model: The network the groups were built from.
        groups: All groups, in order.
        fisher: Running average.
        drift: Distance.
    """

    def __init__(self, model: nn.Module, groups: list[Group], fisher: FisherSpec, drift: DriftSpec) -> None:
        modules = dict(model.named_modules())
        self._groups = groups
        self._factored = {group.layer: has_factors(modules[group.layer]) for group in groups}
        self._convolutions = {layer for layer in self._factored if isinstance(modules[layer], CONVOLUTIONS)}
        self._decay = 0.0 if fisher.average == "none" else fisher.decay
        self._drift = drift
        self._average: Means = {}
        self._count: dict[tuple[str, str], int] = {}
        self._previous: Means = {}

    def uncovered(self, active: Bools) -> list[str]:
        """Parameters of active groups whose Fisher is their mean squared gradient."""
        members = [
            member
            for group, on in zip(self._groups, active, strict=True)
            if on and not self._factored[group.layer]
            for member in group.members
        ]
        return list(dict.fromkeys(member.parameter for member in members))

    def update(self, means: Means, active: Bools, device: torch.device) -> tuple[Floats, Bools]:
        """Takes a new collection into the running averages and compares them with those of the previous one.

        Args:
            means: (layer, ``H``/``S``) to means over the global batch, and (parameter, ``G``) to squared gradients; equal on all ranks.
            active: Groups to compare; the others may be absent from `means`.
            device: Where the collective runs.

        Returns:
            The distances, shape (groups,), and which of them were measured; equal to the bit on every rank.
        """
        current = {key: self._averaged(key, value) for key, value in means.items()}
        previous, self._previous = self._previous, current
        measured = np.array([on and self._known(group, current, previous) for group, on in zip(self._groups, active, strict=True)])
        distances = np.zeros(len(self._groups))
        for index in self._share(measured):
            before, now = (self._values(self._groups[index], state) for state in (previous, current))
            distances[index] = js_distance(before, now, bins=self._drift.bins, centre=self._drift.centre)
        shared = all_sum(torch.from_numpy(distances).to(device))
        return shared.cpu().numpy(), measured

    def _averaged(self, key: tuple[str, str], value: Floats) -> Floats:
        """`x̄ <- γx̄ + (1-γ)x`, divided by `1 - γ^count` so that the start at zero leaves no trace."""
        count = self._count[key] = self._count.get(key, 0) + 1
        average = self._average[key] = self._decay * self._average.get(key, np.zeros_like(value)) + (1 - self._decay) * value
        return average / (1 - self._decay**count)

    def _known(self, group: Group, *states: Means) -> bool:
        keys = [(group.layer, "H"), (group.layer, "S")] if self._factored[group.layer] else [(m.parameter, "G") for m in group.members]
        return all(key in state for key in keys for state in states)

    def _share(self, measured: Bools) -> list[int]:
        """The groups this rank compares: largest first, each to the rank with the least work so far."""
        rank, size = world()
        load = [0] * size
        mine = []
        for index in sorted(np.flatnonzero(measured).tolist(), key=lambda i: -self._groups[i].elements):
            owner = load.index(min(load))
            load[owner] += self._groups[index].elements + 2000  # a comparison costs about as much as sorting so many elements
            if owner == rank:
                mine.append(index)
        return mine

    def _values(self, group: Group, state: Means) -> NDArray[np.float32]:
        return np.concatenate([self._member_values(group.layer, member, state).ravel() for member in group.members])

    def _member_values(self, layer: str, rows: Rows, state: Means) -> NDArray[np.float32]:
        """Diagonal Fisher of some rows, in float32: `S ⊗ H` for a weight, S for its bias, or the squared gradient."""
        block = slice(rows.start, rows.stop)
        if not self._factored[layer]:
            return state[rows.parameter, "G"].reshape(-1, rows.columns)[block].astype(np.float32)
        outputs, inputs = state[layer, "S"].astype(np.float32), state[layer, "H"].astype(np.float32)
        if rows.role == "bias":
            return outputs[block]
        if inputs.ndim == 1:
            return outputs[block] * inputs[block]
        rows_per_group = outputs.size // inputs.shape[0] if layer in self._convolutions else outputs.size
        owner = np.arange(rows.start, rows.stop) // rows_per_group
        return outputs[block, None] * inputs[owner]
