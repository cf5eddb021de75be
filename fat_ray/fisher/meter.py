"""From collected sums to one distance per group, equal to the bit on every rank: states, what they are compared with, who computes what."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fat_ray.fisher.collector import Sums, covered_layers
from fat_ray.fisher.comparison import Comparison, WithAverage, WithPrevious, owners_of
from fat_ray.fisher.factors import ExactFormulas, Formulas
from fat_ray.fisher.flat import NOTHING, SQUARES, Array, Arrays, Flat, PartKey, RunningAverage, below, named, nested, prefixed
from fat_ray.fisher.groups import Group
from fat_ray.fisher.reduce import Ranks, Totals, all_sum, reduce_sums, world
from fat_ray.fisher.released import ReleasedFormulas
from fat_ray.fisher.state import State, group_values
from fat_ray.spec.run import DriftSpec, FisherSpec

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Gradients = Callable[[str], Floats]
"""Name of a parameter to the square of its mean gradient over the global batch."""


@dataclass(frozen=True)
class Measurement:
    """Distances of one update.

    Attributes:
        distance: Per group; with noise correction the divergence above what noise explains, which may be negative.
        noise: Per group, the divergence of the noise alone; 0 without correction.
        measured: Which groups were compared.
        finite: Whether all statistics were; if not, nothing was compared and nothing remembered.
    """

    distance: Floats
    noise: Floats
    measured: Bools
    finite: bool = True


def build_formulas(spec: FisherSpec) -> Formulas:
    """The formulas a specification names."""
    return ReleasedFormulas() if spec.formulas == "released" else ExactFormulas()


class DriftMeter:
    """Measures how far each group's Fisher distribution moved.

    Each rank keeps and compares the states of its share of the groups. With `compare: previous` these are factors only (inputs + outputs
    per layer and half), never a matrix, and layers are shared out; with `compare: average`, element-wise averages of the groups in float32.
    Parameters without factors keep their squared gradients.

    Args:
        model: The network the groups were built from.
        groups: All groups, in order.
        fisher: Estimation.
        drift: Comparison.
        ranks: Who shares the work; None: all ranks.

    Attributes:
        factored: Per group, whether its Fisher is made of factors.
        dead: Groups whose Fisher is zero by decree (`uncovered: zero`): without factors, or not reached by the first collection.
        mine: Per group, whether this rank compares it.
    """

    def __init__(self, model: nn.Module, groups: list[Group], fisher: FisherSpec, drift: DriftSpec, ranks: Ranks = None) -> None:
        self._groups, self._fisher, self._drift, self._ranks = groups, fisher, drift, ranks
        self._formulas = build_formulas(fisher)
        self._modules = covered_layers(model, groups, self._formulas) if fisher.estimator == "kronecker" else {}
        self.factored = np.array([group.layer in self._modules for group in groups])
        by_average = drift.compare == "average"
        rank, num_ranks = world(ranks)
        self.mine: Bools = np.array(_owners(groups, num_ranks, together=not by_average)) == rank
        self._comparison: Comparison = (WithAverage if by_average else WithPrevious)(groups, self.factored, drift)
        self._averages = [RunningAverage(fisher.average, fisher.decay) for _ in range(2)]
        self._square_averages = [RunningAverage(fisher.average, fisher.decay) for _ in range(2)]
        self._waiting: dict[PartKey, Array] = {}
        none = np.zeros(len(groups), np.bool_)
        self._waits, self._known, self._active = none, none, ~none
        self.dead: Bools = ~self.factored if fisher.uncovered == "zero" else none
        self._updates = 0
        self._owned = owners_of(group for group, on in zip(groups, self.mine, strict=True) if on)

    @property
    def halves(self) -> bool:
        """Whether the two halves of each batch must be collected apart."""
        return self._drift.noise == "swap"

    def state(self) -> Arrays:
        """What every rank holds alike."""
        return {"updates": np.array(self._updates), "known": self._known, "waits": self._waits}

    def share(self) -> Arrays:
        """What this rank holds of the groups that it compares; what several ranks hold is the same on all."""
        arrays = {**prefixed("waiting", named(self._waiting)), **prefixed("compared", self._comparison.state())}
        for half in range(2):
            arrays |= prefixed(f"average-{half}", self._averages[half].state())
            arrays |= prefixed(f"average-of-squares-{half}", self._square_averages[half].state())
        return arrays

    def load_state(self, arrays: Arrays, shares: Mapping[str, Callable[[], Array]]) -> None:
        """Goes on from what `state` and `share` returned, also on another number of ranks.

        Args:
            arrays: What `state` returned on any rank.
            shares: What `share` returned on all ranks together; this rank reads what it compares now.
        """
        self._updates, self._known, self._waits = int(arrays["updates"]), arrays["known"], arrays["waits"]
        own = {name: read() for name, read in shares.items() if self._holds(name)}
        self._waiting = nested(below("waiting", own))
        self._comparison.load_state(below("compared", own))
        for half in range(2):
            self._averages[half].load_state(below(f"average-{half}", own))
            self._square_averages[half].load_state(below(f"average-of-squares-{half}", own))

    def _holds(self, name: str) -> bool:
        """Whether this rank needs an array of `share`."""
        section, _, rest = name.removeprefix("compared/").partition("/")
        if section == "average":
            return bool(self.mine[int(rest)])
        if section.startswith("average-"):
            rest = rest.partition("/")[2]
        return rest.rpartition("/")[0] in self._owned

    def update(self, sums: Sums, squared_gradient: Gradients, active: Bools, device: torch.device) -> Measurement:
        """Takes a collection into the state, and compares.

        Args:
            sums: What this rank's collector took.
            squared_gradient: For parameters without factors.
            active: Groups to compare; layers of the others need not be in `sums`.
            device: Where the collectives run.
        """
        totals = reduce_sums(sums, device, self._ranks)
        squares, finite = self._squares(squared_gradient, active)
        if not (totals.finite and finite):
            return Measurement(np.zeros(len(active)), np.zeros(len(active)), np.zeros_like(active), finite=False)
        self._forget_frozen(active)
        fresh = self._fresh(totals, active)
        states = self._advance(totals, squares)
        found = self._comparison.compare(states, np.flatnonzero(fresh & self.mine).tolist(), self._known)
        measured, self._known = fresh & self._known, self._known | fresh
        self._updates += 1
        shared = all_sum(torch.from_numpy(found).to(device), self._ranks).cpu().numpy()
        return Measurement(shared[0], shared[1], measured)

    def mean_values(self, sums: Sums, squared_gradient: Gradients, active: Bools, device: torch.device) -> Floats:
        """The mean diagonal Fisher value of each active group in one collection alone; NaN for the others.

        Running averages are left alone, and the halves of a batch are joined. Equal on every rank, to the bit.

        Args:
            sums: What this rank's collector took.
            squared_gradient: For parameters without factors.
            active: Groups to judge.
            device: Where the collective runs.
        """
        joined: dict[str, dict[str, tuple[Floats, float]]] = {}
        for (layer, part, _), (total, count) in reduce_sums(sums, device, self._ranks).items():
            before, count_before = joined.setdefault(layer, {}).get(part, (np.zeros_like(total), 0.0))
            joined[layer][part] = before + total, count_before + count
        finished = {layer: self._formulas.finish(self._modules[layer], parts) for layer, parts in joined.items()}
        factors = {(layer, part): value for layer, parts in finished.items() for part, value in parts.items()}
        squares = {(name, SQUARES): squared_gradient(name) for name in self._without_factors(active & ~self.dead)}
        state = State(Flat.of(factors), Flat.of(squares))
        means = np.where(active & self.dead, 0.0, np.nan)
        for index in np.flatnonzero(active & ~self.dead).tolist():
            group, factored = self._groups[index], bool(self.factored[index])
            if not factored or group.layer in joined:
                means[index] = group_values(group, state, factored=factored).mean(dtype=np.float64)
        return means

    def _forget_frozen(self, active: Bools) -> None:
        if (active != self._active).any():
            self._active, self._known = active.copy(), self._known & active
            self._comparison.keep(active & self.mine)

    def _fresh(self, totals: Totals, active: Bools) -> Bools:
        """Groups of which this collection makes a new state; at the first one, all others are dead if they may be."""
        collected = {layer for layer, _, _ in totals}
        reached = np.array([group.layer in collected for group in self._groups])
        fresh: Bools = active & np.where(self.factored, reached, self._completed)
        if self._updates == 0 and self._fisher.uncovered == "zero":
            self.dead = self.dead | (active & ~fresh)
        return fresh & ~self.dead

    def _advance(self, totals: Totals, squares: list[dict[PartKey, Array]]) -> list[State]:
        """The states after this collection of what this rank compares: one per half with noise correction, else one."""
        factors = self._factors(totals)
        halves = (0, 1) if self.halves else (1,)
        averages = [self._averages[half].update(factors.get(half, {})) for half in halves]
        averages_of_squares = [
            self._square_averages[half].update(each) if each else NOTHING for half, each in zip(halves, squares, strict=True)
        ]
        return [State(*both) for both in zip(averages, averages_of_squares, strict=True)]

    def _factors(self, totals: Totals) -> dict[int, dict[PartKey, Array]]:
        """Factors over the global batch, of each half."""
        by_layer: dict[tuple[str, int], dict[str, tuple[Floats, float]]] = {}
        for (layer, part, half), total in totals.items():
            if layer in self._owned:
                by_layer.setdefault((layer, half), {})[part] = total
        factors: dict[int, dict[PartKey, Array]] = {}
        for (layer, half), parts in by_layer.items():
            finished = self._formulas.finish(self._modules[layer], parts)
            factors.setdefault(half, {}).update({(layer, part): value for part, value in finished.items()})
        return factors

    def _squares(self, squared_gradient: Gradients, active: Bools) -> tuple[list[dict[PartKey, Array]], bool]:
        """Squared gradients of what this rank compares, one collection per half, and whether those of all ranks are finite.

        With noise correction, consecutive collections are the two halves: the first one waits for the second. All ranks ask for all
        gradients, as those of sharded tensors are gathered.
        """
        nothing: list[dict[PartKey, Array]] = [{} for _ in range(2 if self.halves else 1)]
        wanted = active & ~self.factored & ~self.dead
        self._completed = np.zeros_like(wanted)
        if not wanted.any():
            return nothing, True
        gradients = {name: squared_gradient(name) for name in self._without_factors(wanted)}
        largest = np.finfo(np.float32).max
        if not all((gradient <= largest).all() for gradient in gradients.values()):
            return nothing, False
        own = {(name, SQUARES): gradient.astype(np.float32) for name, gradient in gradients.items() if name in self._owned}
        if not self.halves:
            self._completed = wanted
            return [own], True
        if not self._waits.any():
            self._waits, self._waiting = wanted, own
            return nothing, True
        self._completed, self._waits = wanted & self._waits, np.zeros_like(wanted)
        waited, self._waiting = self._waiting, {}
        names = set(self._without_factors(self._completed))  # what thawed in between is left for the next pair
        # in one order, also where a checkpoint had another: halves are added as they stand
        return [{key: each[key] for key in own if key[0] in names} for each in (waited, own)], True

    def _without_factors(self, chosen: Bools) -> list[str]:
        """Names of the parameters of some groups, if they have no factors."""
        groups = [self._groups[index] for index in np.flatnonzero(chosen & ~self.factored)]
        return list(dict.fromkeys(member.parameter for group in groups for member in group.members))


def _owners(groups: list[Group], num_ranks: int, *, together: bool) -> list[int]:
    """Which rank compares which group: largest first, each to the rank with the least work so far.

    Args:
        groups: All groups.
        num_ranks: Among how many.
        together: Whether the groups of a layer go to one rank.
    """
    shares: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        shares.setdefault(group.layer if together else index, []).append(index)
    # a comparison costs about as much as sorting so many elements
    work = {key: sum(groups[index].elements + 2000 for index in members) for key, members in shares.items()}
    load, owners = [0] * num_ranks, [0] * len(groups)
    for key in sorted(shares, key=lambda key: -work[key]):
        rank = load.index(min(load))
        load[rank] += work[key]
        for index in shares[key]:
            owners[index] = rank
    return owners
