"""From collected sums to one distance per group, equal to the bit on every rank: states, what they are compared with, who computes what."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fat_ray.fisher.collector import Sums, covered_layers
from fat_ray.fisher.compare import Distributions, js_divergences
from fat_ray.fisher.drift import automatic_bins
from fat_ray.fisher.factors import ExactFormulas, Formulas
from fat_ray.fisher.flat import NOTHING, Arrays, Flat, PartKey, RunningAverage, below, named, nested, prefixed
from fat_ray.fisher.groups import Group
from fat_ray.fisher.products import Products
from fat_ray.fisher.reduce import Ranks, all_sum, reduce_sums, world
from fat_ray.fisher.released import ReleasedFormulas
from fat_ray.fisher.state import SQUARES, UNKNOWN, State, Vectors, at_scale_of, group_values, is_known, mean
from fat_ray.fisher.values import Sorted, Values
from fat_ray.spec.run import DriftSpec, FisherSpec

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Gradients = Callable[[str], Floats]
"""Name of a parameter to the square of its mean gradient over the global batch."""

_LARGE = 8192
"""Values from which on it is quicker to count them by their leading bits than to sort them."""


_LEAST = 256
"""Entries of vectors that take as much scratch memory as the samples and thresholds of a group."""


@dataclass(frozen=True)
class Measurement:
    """Distances of one update.

    Attributes:
        distance: Per group; with noise correction the divergence above what noise explains, which may be negative.
        noise: Per group, the divergence of the noise alone; 0 without correction.
        measured: Which groups were compared.
        finite: Whether all statistics were; if not, nothing was compared.
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

    With `compare: previous` only factors are kept (inputs + outputs per layer and half), never a matrix. With `compare: average` each
    rank keeps the element-wise averages of the groups it compares, in float32. Parameters without factors keep their squared gradients.

    Args:
        model: The network the groups were built from.
        groups: All groups, in order.
        fisher: Estimation.
        drift: Comparison.
        ranks: Who shares the work; None: all ranks.
    """

    def __init__(self, model: nn.Module, groups: list[Group], fisher: FisherSpec, drift: DriftSpec, ranks: Ranks = None) -> None:
        self._groups, self._fisher, self._drift, self._ranks = groups, fisher, drift, ranks
        self._formulas = build_formulas(fisher)
        covered = covered_layers(model, groups, self._formulas) if fisher.estimator == "kronecker" else {}
        self._modules = covered
        self.factored = np.array([group.layer in covered for group in groups])
        self._averages = [RunningAverage(fisher.average, fisher.decay) for _ in range(2)]
        self._square_averages = [RunningAverage(fisher.average, fisher.decay) for _ in range(2)]
        self._previous: list[State] = []
        self._elementwise: dict[int, Floats32] = {}
        self._updates = 0
        self._sizes = [group.elements for group in groups]
        self._owners = _owners(self._sizes, world(ranks)[1])  # of the element-wise averages, which stay where they are
        self._budget = 1 << 17  # entries of the vectors that are compared at a time
        self._shapes: dict[int, tuple[bool, int]] = {}
        self._waiting: dict[PartKey, Floats] = {}

    @property
    def halves(self) -> bool:
        """Whether the two halves of each batch must be collected apart."""
        return self._drift.noise == "swap"

    @property
    def dead(self) -> Bools:
        """Groups whose Fisher is zero by decree (`uncovered: zero`)."""
        return ~self.factored if self._fisher.uncovered == "zero" else np.zeros_like(self.factored)

    def state(self) -> Arrays:
        """What every rank holds alike: running averages, previous states, squared gradients that wait for their second half."""
        arrays: Arrays = {"updates": np.array(self._updates), **prefixed("waiting", named(self._waiting))}
        for half in range(2):
            arrays |= prefixed(f"average-{half}", self._averages[half].state())
            arrays |= prefixed(f"average-of-squares-{half}", self._square_averages[half].state())
        for half, previous in enumerate(self._previous):
            arrays |= prefixed(f"previous-{half}/factors", named(previous.factors))
            arrays |= prefixed(f"previous-{half}/squares", named(previous.squares))
        return arrays

    def share(self) -> Arrays:
        """What this rank alone holds: the element-wise averages of the groups that it compares, by number of the group."""
        return {str(index): average for index, average in self._elementwise.items()}

    def load_state(self, arrays: Arrays, shares: Mapping[str, Callable[[], Floats32]]) -> None:
        """Goes on from what `state` and `share` returned, also on another number of ranks.

        Args:
            arrays: What `state` returned on any rank.
            shares: What `share` returned on all ranks together; this rank reads what it compares now.
        """
        self._updates = int(arrays["updates"])
        self._waiting = nested(below("waiting", arrays))
        for half in range(2):
            self._averages[half].load_state(below(f"average-{half}", arrays))
            self._square_averages[half].load_state(below(f"average-of-squares-{half}", arrays))
        halves = range((2 if self.halves else 1) if self._updates else 0)
        parts = [[below(f"previous-{half}/{part}", arrays) for part in ("factors", "squares")] for half in halves]
        self._previous = [State(*(Flat.of(nested(part)) for part in both)) for both in parts]
        rank = world(self._ranks)[0]
        self._elementwise = {int(index): read() for index, read in shares.items() if self._owners[int(index)] == rank}

    def update(self, sums: Sums, squared_gradient: Gradients, active: Bools, device: torch.device) -> Measurement:
        """Takes a collection into the state, and compares.

        Args:
            sums: What this rank's collector took.
            squared_gradient: For parameters without factors.
            active: Groups to compare; layers of the others need not be in `sums`.
            device: Where the collectives run.
        """
        states = self._advance(sums, squared_gradient, active, device)
        num_groups = len(self._groups)
        if not all(state.is_finite() for state in states):
            return Measurement(np.zeros(num_groups), np.zeros(num_groups), np.zeros(num_groups, bool), finite=False)
        if self._drift.compare == "average":
            found, measured = self._compare_with_average(states, active)
        else:
            found, measured = self._compare_with_previous(states, active)
        if self._waiting:  # squared gradients that wait for their second half keep their previous state
            states = [State(new.factors, old.squares) for new, old in zip(states, self._previous or states, strict=True)]
        self._previous = states
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
        for index in np.flatnonzero(self._known(state, active & ~self.dead)).tolist():
            means[index] = group_values(self._groups[index], state, factored=bool(self.factored[index])).mean(dtype=np.float64)
        return means

    def _advance(self, sums: Sums, squared_gradient: Gradients, active: Bools, device: torch.device) -> list[State]:
        """The states after this collection: one per half with noise correction, else one."""
        halves = (0, 1) if self.halves else (1,)
        factors = self._factors(sums, device)
        squares = [NOTHING for _ in halves]
        if self._fisher.uncovered == "squared_gradient" or self._fisher.estimator == "squared_gradient":
            squares = self._squares(squared_gradient, active)
        averages = [self._averages[half].update(factors.pop(half, {})) for half in halves]
        return [State(*both) for both in zip(averages, squares, strict=True)]

    def _factors(self, sums: Sums, device: torch.device) -> dict[int, dict[PartKey, Floats]]:
        """Factors over the global batch, of each half."""
        by_layer: dict[tuple[str, int], dict[str, tuple[Floats, float]]] = {}
        for (layer, part, half), total in reduce_sums(sums, device, self._ranks).items():
            by_layer.setdefault((layer, half), {})[part] = total
        factors: dict[int, dict[PartKey, Floats]] = {}
        for (layer, half), parts in by_layer.items():
            finished = self._formulas.finish(self._modules[layer], parts)
            factors.setdefault(half, {}).update({(layer, part): value for part, value in finished.items()})
        return factors

    def _squares(self, squared_gradient: Gradients, active: Bools) -> list[Flat]:
        """Squared gradients of active parameters without factors; with noise correction, consecutive collections are the two halves."""
        squares = {(name, SQUARES): squared_gradient(name) for name in self._without_factors(active)}
        if not self.halves:
            return [self._square_averages[1].update(squares)]
        if not self._waiting:
            self._waiting = squares
            return [NOTHING, NOTHING]
        waited, self._waiting = self._waiting, {}
        known = [key for key in squares if key in waited]  # what thawed in between is left for the next pair
        pair = ({key: collected[key] for key in known} for collected in (waited, squares))
        return [average.update(each) for average, each in zip(self._square_averages, pair, strict=True)]

    def _without_factors(self, active: Bools) -> list[str]:
        """Names of the parameters of active groups without factors."""
        groups = [self._groups[index] for index in np.flatnonzero(active & ~self.factored)]
        return list(dict.fromkeys(member.parameter for group in groups for member in group.members))

    def _compare_with_previous(self, states: list[State], active: Bools) -> tuple[Floats, Bools]:
        found = np.zeros((2, len(self._groups)))
        previous = self._previous or [UNKNOWN for _ in states]
        previous = [before.only(now) for before, now in zip(previous, states, strict=True)]
        states = [now.only(before) for before, now in zip(previous, states, strict=True)]
        measured = self._known(states[-1], active)
        sizes = [size if on else 0 for size, on in zip(self._sizes, measured, strict=True)]
        mine = self._mine(measured, _owners(sizes, world(self._ranks)[1]))
        pairs = [(previous[0], states[0])]
        if self.halves:
            (before_a, before_b), (now_a, now_b) = previous, states
            scaled_a, scaled_b = at_scale_of(states, previous)
            pairs = [(mean(before_a, before_b), mean(now_a, now_b)), (mean(now_a, scaled_b), mean(scaled_a, now_b))]
        formed = [[Vectors(state) for state in pair] for pair in pairs]
        for batch in self._batches(mine, formed[0][0]):
            sides = [[self._vectors(index, pair[side]) for pair in formed for index in batch] for side in (0, 1)]
            moved, *apart = self._divergences(batch, _distributions(sides[0]), _distributions(sides[1])).reshape(len(pairs), -1)
            found[:, batch] = (moved - apart[0], apart[0]) if apart else (np.sqrt(moved), 0 * moved)
        return found, measured

    def _known(self, state: State, active: Bools) -> Bools:
        wanted = zip(self._groups, self.factored.tolist(), active.tolist(), strict=True)
        return np.array([on and is_known(group, state, factored=factored) for group, factored, on in wanted])

    def _vectors(self, index: int, vectors: Vectors) -> tuple[Floats32, Floats32]:
        return vectors.of(self._groups[index], factored=bool(self.factored[index]))

    def _divergences(self, batch: list[int], reference: Distributions, current: Distributions) -> Floats:
        bins = self._bins(self._sizes[batch[0]])
        return js_divergences(reference, current, mode=self._drift.distance, bins=bins, centre=self._drift.centre)

    def _bins(self, size: int) -> int:
        return automatic_bins(size) if self._drift.bins == "auto" else self._drift.bins

    def _batches(self, chosen: list[int], vectors: Vectors) -> Iterator[list[int]]:
        """Groups of one kind, as many at a time as scratch memory allows; with and without an element-wise average apart."""
        kinds: dict[tuple[bool, bool, bool, int], list[int]] = {}
        for index in chosen:
            if index not in self._shapes:
                rows, columns = self._vectors(index, vectors)
                self._shapes[index] = rows.size == 1, rows.size + columns.size + _LEAST
            averaged, size = index in self._elementwise, self._sizes[index]
            kind = averaged, averaged and size >= _LARGE, self._shapes[index][0], self._bins(size)
            kinds.setdefault(kind, []).append(index)
        for (_, large, _, _), members in kinds.items():
            batch: list[int] = []
            room = 0
            for index in members:
                need = self._shapes[index][1] + (self._sizes[index] >> 3) if large else self._shapes[index][1]
                if batch and need > room:
                    yield batch
                    batch = []
                room = (room if batch else self._budget) - need
                batch.append(index)
            yield batch

    def _compare_with_average(self, states: list[State], active: Bools) -> tuple[Floats, Bools]:
        """Each state against the element-wise average of all before; the first state only starts the average."""
        found = np.zeros((2, len(self._groups)))
        present = self._known(states[0], active)
        formed = Vectors(states[0])
        for batch in self._batches(self._mine(present, self._owners), formed):
            vectors = [self._vectors(index, formed) for index in batch]
            if batch[0] in self._elementwise:
                averages = [self._elementwise[index] for index in batch]
                reference = Values(averages) if averages[0].size >= _LARGE else Sorted(averages)
                found[0, batch] = np.sqrt(self._divergences(batch, reference, _distributions(vectors)))
            for index, (rows, columns) in zip(batch, vectors, strict=True):
                self._average(index, np.outer(rows, columns).ravel())
        for frozen in np.flatnonzero(~active).tolist():
            self._elementwise.pop(frozen, None)
        return found, present & (self._updates > 0)

    def _average(self, index: int, values: Floats32) -> None:
        """`E <- decay·E + (1-decay)·F` in float32; the first F starts E."""
        average = self._elementwise.setdefault(index, values)
        if average is not values:
            average *= np.float32(self._drift.compare_decay)
            values *= np.float32(1.0 - self._drift.compare_decay)
            average += values

    def _mine(self, wanted: Bools, owners: list[int]) -> list[int]:
        rank = world(self._ranks)[0]
        return [int(index) for index in np.flatnonzero(wanted) if owners[index] == rank]


def _distributions(vectors: list[tuple[Floats32, Floats32]]) -> Products | Sorted:
    if vectors[0][0].size == 1:
        return Sorted([columns for _, columns in vectors])
    return Products(vectors)


def _owners(sizes: list[int], num_ranks: int) -> list[int]:
    """Which rank compares which group: largest first, each to the rank with the least work so far."""
    load, owners = [0] * num_ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[index] = load.index(min(load))
        load[owners[index]] += sizes[index] + 2000  # a comparison costs about as much as sorting so many elements
    return owners
