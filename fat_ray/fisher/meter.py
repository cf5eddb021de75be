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
from fat_ray.fisher.groups import Group
from fat_ray.fisher.products import Products
from fat_ray.fisher.reduce import Ranks, all_sum, reduce_sums, world
from fat_ray.fisher.released import ReleasedFormulas
from fat_ray.fisher.state import (
    SQUARES,
    Arrays,
    MeanState,
    PartKey,
    RunningAverage,
    State,
    at_scale_of,
    below,
    flat,
    group_values,
    group_vectors,
    is_known,
    nested,
    prefixed,
)
from fat_ray.fisher.values import Values
from fat_ray.spec.run import DriftSpec, FisherSpec

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Gradients = Callable[[str], Floats]
"""Name of a parameter to the square of its mean gradient over the global batch."""

_LARGE = 8192
"""Values from which on it is quicker to count them by their leading bits than to sort them."""

_LEAST = 96
"""What a group counts for at least."""

_ONE = np.ones(1, np.float32)


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
        self._previous: list[State] = []
        self._elementwise: dict[int, Floats32] = {}
        self._updates = 0
        self._sizes = [group.elements for group in groups]
        self._owners = _owners(self._sizes, world(ranks)[1])  # of the element-wise averages, which stay where they are
        # scratch memory: entries of the longer vectors, and values that are no products, of the groups compared at a time
        self._vector_budget = max(5 << 9, sum(self._sizes) >> 11)
        self._value_budget = max(1 << 15, sum(self._sizes) >> 6)
        self._shapes: dict[int, tuple[int, int, int]] = {}
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
        arrays: Arrays = {"updates": np.array(self._updates), **prefixed("waiting", flat(self._waiting))}
        for half, average in enumerate(self._averages):
            arrays |= prefixed(f"average-{half}", average.state())
        for half, previous in enumerate(self._previous):
            arrays |= prefixed(f"previous-{half}", flat(previous))
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
        for half, average in enumerate(self._averages):
            average.load_state(below(f"average-{half}", arrays))
        halves = range(2 if self.halves else 1)
        self._previous = [nested(below(f"previous-{half}", arrays)) for half in halves] if self._updates else []
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
        if not all(np.isfinite(value).all() for state in states for value in state.values()):
            return Measurement(np.zeros(num_groups), np.zeros(num_groups), np.zeros(num_groups, bool), finite=False)
        if self._drift.compare == "average":
            found, measured = self._compare_with_average(states, active)
        else:
            found, measured = self._compare_with_previous(states, active)
        # squared gradients that wait for their second half keep their previous state
        kept = [{key: value for key, value in state.items() if key in self._waiting} for state in self._previous or [{} for _ in states]]
        self._previous = [{**old, **new} for old, new in zip(kept, states, strict=True)]
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
        state: dict[PartKey, Floats] = {}
        for layer, parts in joined.items():
            state |= {(layer, part): value for part, value in self._formulas.finish(self._modules[layer], parts).items()}
        for name in self._without_factors(active & ~self.dead):
            state[name, SQUARES] = squared_gradient(name)
        means = np.where(active & self.dead, 0.0, np.nan)
        for index in np.flatnonzero(active & ~self.dead).tolist():
            if self._known(index, [state]):
                means[index] = group_values(self._groups[index], state, factored=bool(self.factored[index])).mean(dtype=np.float64)
        return means

    def _advance(self, sums: Sums, squared_gradient: Gradients, active: Bools, device: torch.device) -> list[State]:
        """The states after this collection: one per half with noise correction, else one."""
        totals = reduce_sums(sums, device, self._ranks)
        halves = (0, 1) if self.halves else (1,)
        states: list[dict[PartKey, Floats]] = []
        for half in halves:
            state: dict[PartKey, Floats] = {}
            by_layer: dict[str, dict[str, tuple[Floats, float]]] = {}
            for (layer, part, h), total in totals.items():
                if h == half:
                    by_layer.setdefault(layer, {})[part] = total
            for layer, parts in by_layer.items():
                for part, value in self._formulas.finish(self._modules[layer], parts).items():
                    state[layer, part] = self._averages[half].update((layer, part), value)
            states.append(state)
        if self._fisher.uncovered == "squared_gradient" or self._fisher.estimator == "squared_gradient":
            self._add_squares(states, squared_gradient, active)
        return list(states)

    def _add_squares(self, states: list[dict[PartKey, Floats]], squared_gradient: Gradients, active: Bools) -> None:
        """Squared gradients of active parameters without factors; with noise correction, consecutive collections are the two halves."""
        for name in self._without_factors(active):
            key = (name, SQUARES)
            squares = squared_gradient(name)
            if not self.halves:
                states[0][key] = self._averages[1].update(key, squares)
            elif key in self._waiting:
                for state, average, value in zip(states, self._averages, (self._waiting.pop(key), squares), strict=True):
                    state[key] = average.update(key, value)
            else:
                self._waiting[key] = squares

    def _without_factors(self, active: Bools) -> list[str]:
        """Names of the parameters of active groups without factors."""
        groups = [self._groups[index] for index in np.flatnonzero(active & ~self.factored)]
        return list(dict.fromkeys(member.parameter for group in groups for member in group.members))

    def _compare_with_previous(self, states: list[State], active: Bools) -> tuple[Floats, Bools]:
        found = np.zeros((2, len(self._groups)))
        previous = self._previous or [{} for _ in states]
        measured = np.array([on and self._known(index, [*states, *previous]) for index, on in enumerate(active)])
        mine = self._mine(
            measured, _owners([size if on else 0 for size, on in zip(self._sizes, measured, strict=True)], world(self._ranks)[1])
        )
        pairs = [(previous[0], states[0])]
        if self.halves:
            (before_a, before_b), (now_a, now_b) = previous, states
            drift = MeanState(before_a, before_b), MeanState(now_a, now_b)
            scaled_a, scaled_b = at_scale_of(states, previous)
            noise = MeanState(now_a, scaled_b), MeanState(scaled_a, now_b)
            pairs = [drift, noise]
        for batch in self._batches(mine, pairs[0][0]):
            sides = [[self._vectors(index, pair[side]) for pair in pairs for index in batch] for side in (0, 1)]
            moved, *apart = self._divergences(_distributions(sides[0]), _distributions(sides[1])).reshape(len(pairs), -1)
            found[:, batch] = (moved - apart[0], apart[0]) if apart else (np.sqrt(moved), 0 * moved)
        return found, measured

    def _known(self, index: int, states: list[State]) -> bool:
        return all(is_known(self._groups[index], state, factored=bool(self.factored[index])) for state in states)

    def _vectors(self, index: int, state: State) -> tuple[Floats32, Floats32]:
        return group_vectors(self._groups[index], state, factored=bool(self.factored[index]))

    def _divergences(self, reference: Distributions, current: Distributions) -> Floats:
        bins = self._bins(int(reference.sizes[0]))
        return js_divergences(reference, current, mode=self._drift.distance, bins=bins, centre=self._drift.centre)

    def _bins(self, size: int) -> int:
        return automatic_bins(size) if self._drift.bins == "auto" else self._drift.bins

    def _batches(self, chosen: list[int], state: State, *, formed: bool = False) -> Iterator[list[int]]:
        """Groups whose vectors have equal lengths, or are single and of like lengths, as many at a time as scratch memory allows.

        Args:
            chosen: Numbers of groups.
            state: Where the lengths are seen for the first time.
            formed: Whether all values of a group are needed too; groups with and without an average are then kept apart.
        """
        shapes: dict[tuple[tuple[int, int, int], bool], list[int]] = {}
        for index in chosen:
            if index not in self._shapes:
                rows, columns = self._vectors(index, state)
                exact = rows.size > 1 or columns.size >= _LARGE
                length = columns.size if exact else 1 << (columns.size - 1).bit_length()
                self._shapes[index] = rows.size, length, self._bins(self._sizes[index])
            shapes.setdefault((self._shapes[index], index in self._elementwise), []).append(index)
        for ((num_rows, num_columns, _), _), members in shapes.items():
            budget, values = (self._value_budget, num_rows * num_columns) if formed else (1 << 14, num_columns if num_rows == 1 else 1)
            most = max(1, min(self._vector_budget // max(num_rows, num_columns if num_rows > 1 else _LEAST), budget // values))
            yield from (members[first : first + most] for first in range(0, len(members), most))

    def _compare_with_average(self, states: list[State], active: Bools) -> tuple[Floats, Bools]:
        """Each state against the element-wise average of all before; the first state only starts the average."""
        found = np.zeros((2, len(self._groups)))
        present = np.array([on and self._known(index, states) for index, on in enumerate(active)])
        for batch in self._batches(self._mine(present, self._owners), states[0], formed=True):
            vectors = [self._vectors(index, states[0]) for index in batch]
            if batch[0] in self._elementwise:
                averages = [(_ONE, self._elementwise[index]) for index in batch]
                found[0, batch] = np.sqrt(self._divergences(_distributions(averages), _distributions(vectors)))
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


def _distributions(vectors: list[tuple[Floats32, Floats32]]) -> Distributions:
    lengths = np.array([columns.size for _, columns in vectors])
    if vectors[0][0].size == 1 and lengths[0] >= _LARGE:
        return Values(np.stack([columns for _, columns in vectors]))
    if (lengths == lengths[0]).all():
        return Products(np.stack([rows for rows, _ in vectors]), np.stack([columns for _, columns in vectors]))
    table = np.full((len(vectors), lengths.max()), np.inf, np.float32)
    for row, (_, columns) in zip(table, vectors, strict=True):
        row[: columns.size] = columns
    return Products(np.stack([rows for rows, _ in vectors]), table, lengths)


def _owners(sizes: list[int], num_ranks: int) -> list[int]:
    """Which rank compares which group: largest first, each to the rank with the least work so far."""
    load, owners = [0] * num_ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owners[index] = load.index(min(load))
        load[owners[index]] += sizes[index] + 2000  # a comparison costs about as much as sorting so many elements
    return owners
