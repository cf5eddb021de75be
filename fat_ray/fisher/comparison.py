"""What the state of a group is compared with: the state before, or the element-wise average of all before."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fat_ray.fisher.compare import js_divergences
from fat_ray.fisher.distributions import Distributions, Formed
from fat_ray.fisher.drift import automatic_bins
from fat_ray.fisher.flat import NOTHING, Arrays, Flat, Layout, below, named, nested, prefixed
from fat_ray.fisher.forming import Batch, Recipe, is_product, is_tiny, recipe_of, size_of
from fat_ray.fisher.groups import Group
from fat_ray.fisher.state import State, at_scale_of, mean
from fat_ray.spec.run import DriftSpec

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

_SCRATCH = 1 << 20
"""Bytes that a batch of groups may take; a fifth of a byte per parameter if that is more."""

_BYTES_PER_GROUP = 16_000
"""Samples and thresholds."""

_BYTES_PER_ROW = 150
"""Of products that are searched."""


class Comparison(Protocol):
    """Remembers what states are compared with, and compares."""

    def compare(self, states: list[State], fresh: Sequence[int], known: Bools) -> Floats:
        """Compares groups, and remembers the states.

        Args:
            states: One per half with noise correction, else one.
            fresh: The groups that this rank compares and whose state is new.
            known: Per group, whether there is something to compare it with.

        Returns:
            Distance and noise per group, (2, groups); zeros where nothing was compared.
        """
        ...

    def keep(self, active: Bools) -> None:
        """Forgets what belongs to frozen groups alone."""
        ...

    def state(self) -> Arrays:
        """What is remembered, by names whose second part is a group's number or its layer's or parameter's name."""
        ...

    def load_state(self, arrays: Arrays) -> None:
        """Goes on from what `state` returned."""
        ...


Side = dict[bool, Floats32]
"""The data of a state: of its factors (True) and of its squares (False)."""


class Workshop:
    """Puts groups together to batches, and compares these.

    Args:
        groups: All groups.
        factored: Per group, whether it is formed from factors.
        drift: How to compare.
    """

    def __init__(self, groups: list[Group], factored: Bools, drift: DriftSpec) -> None:
        self.groups, self._drift = groups, drift
        self._factored: list[bool] = factored.tolist()
        self._layouts: dict[bool, Layout] = {}
        self._batches: dict[tuple[int, ...], list[Batch]] = {}
        self._scratch = max(_SCRATCH, sum(group.elements for group in groups) // 5)

    def enter(self, states: Sequence[State]) -> list[Side]:
        """The data of states of one layout."""
        for factored, flat in ((True, states[0].factors), (False, states[0].squares)):
            if len(flat) and self._layouts.get(factored) is not flat.layout:
                self._layouts[factored] = flat.layout
                self._batches.clear()
        return [{True: state.factors.data, False: state.squares.data} for state in states]

    def keep(self) -> None:
        """Other groups are active: batches of those before are not needed again."""
        self._batches.clear()

    def batches(self, chosen: Sequence[int], num_pairs: int = 1) -> list[Batch]:
        """Groups of one kind, as many at a time as scratch memory allows.

        Args:
            chosen: Groups whose data has entered.
            num_pairs: How many pairs of sides are compared at once.
        """
        key = tuple(chosen)
        if key not in self._batches:
            self._batches[key] = [batch for alike in self._kinds(chosen) for batch in self._divided(alike, num_pairs)]
        return self._batches[key]

    def _kinds(self, chosen: Sequence[int]) -> Iterator[dict[int, Recipe]]:
        """Groups that can be formed and compared together, the smallest first."""
        kinds: dict[tuple[bool, bool, bool, int], dict[int, Recipe]] = {}
        for index in sorted(chosen, key=lambda index: self.groups[index].elements):
            factored = self._factored[index]
            recipe = recipe_of(self.groups[index], self._layouts[factored], factored=factored)
            kinds.setdefault((factored, is_product(recipe), is_tiny(recipe), self._bins(index)), {})[index] = recipe
        yield from kinds.values()

    def _divided(self, alike: dict[int, Recipe], num_pairs: int) -> Iterator[Batch]:
        num_data = self._layouts[self._factored[next(iter(alike))]].size
        members: list[int] = []
        room = self._scratch
        for index, recipe in alike.items():
            formed, rows = size_of(recipe), size_of(recipe) // sum(term.width for term in recipe)
            need = num_pairs * (_BYTES_PER_GROUP + (_BYTES_PER_ROW * rows if is_product(recipe) else 8 * formed))
            need += 4 * formed if self._drift.compare == "average" else 0
            if members and need > room:
                yield Batch(members, [alike[member] for member in members], num_data)
                members, room = [], self._scratch
            members.append(index)
            room -= need
        yield Batch(members, [alike[member] for member in members], num_data)

    def data(self, batch: Batch, side: Side) -> Floats32:
        """What a batch is formed of."""
        return side[self._factored[batch.members[0]]]

    def distributions(self, batch: Batch, sides: Sequence[Side]) -> Distributions:
        """All groups of a batch under the first side, then under the next."""
        return batch.distributions([self.data(batch, side) for side in sides])

    def _bins(self, index: int) -> int:
        return automatic_bins(self.groups[index].elements) if self._drift.bins == "auto" else self._drift.bins

    def divergences(self, batch: Batch, reference: Distributions, current: Distributions) -> Floats:
        """Of all pairs of a batch."""
        drift = self._drift
        return js_divergences(reference, current, mode=drift.distance, bins=self._bins(batch.members[0]), centre=drift.centre)


class WithPrevious:
    """Compares with the previous state; with noise correction, the crossed swap (docs/method.md, section 2).

    Args:
        groups: All groups.
        factored: Per group, whether it is formed from factors.
        drift: How to compare.
    """

    def __init__(self, groups: list[Group], factored: Bools, drift: DriftSpec) -> None:
        self._workshop = Workshop(groups, factored, drift)
        self._owners = owners_of(groups)
        self._previous: list[State] = []

    def compare(self, states: list[State], fresh: Sequence[int], known: Bools) -> Floats:
        """See `Comparison`."""
        found = np.zeros((2, len(known)))
        chosen = [index for index in fresh if known[index]]
        if chosen:
            pairs = self._pairs(states)
            before, now = (self._workshop.enter([pair[side] for pair in pairs]) for side in (0, 1))
            for batch in self._workshop.batches(chosen, len(pairs)):
                sides = (self._workshop.distributions(batch, side) for side in (before, now))
                moved, *apart = self._workshop.divergences(batch, *sides).reshape(len(pairs), -1)
                found[:, batch.members] = (moved - apart[0], apart[0]) if apart else (np.sqrt(moved), 0 * moved)
        previous = self._previous or states
        self._previous = [new.over(old, self._owners) for new, old in zip(states, previous, strict=True)]
        return found

    def _pairs(self, states: list[State]) -> list[tuple[State, State]]:
        previous = [before.only(now) for before, now in zip(self._previous, states, strict=True)]
        states = [now.only(before) for before, now in zip(previous, states, strict=True)]
        if len(states) == 1:
            return [(previous[0], states[0])]
        (before_a, before_b), (now_a, now_b) = previous, states
        scaled_a, scaled_b = at_scale_of(states, previous)
        return [(mean(before_a, before_b), mean(now_a, now_b)), (mean(now_a, scaled_b), mean(scaled_a, now_b))]

    def keep(self, active: Bools) -> None:
        """See `Comparison`."""
        self._workshop.keep()
        self._owners = owners_of([group for group, on in zip(self._workshop.groups, active, strict=True) if on])

    def state(self) -> Arrays:
        """See `Comparison`."""
        arrays: Arrays = {}
        for half, state in enumerate(self._previous):
            arrays |= prefixed(f"factors-{half}", named(state.factors)) | prefixed(f"squares-{half}", named(state.squares))
        return arrays

    def load_state(self, arrays: Arrays) -> None:
        """See `Comparison`."""
        halves = sorted({int(name.partition("/")[0].rpartition("-")[2]) for name in arrays})
        parts = [[nested(below(f"{part}-{half}", arrays)) for part in ("factors", "squares")] for half in halves]
        self._previous = [State(*(Flat.of(part) if part else NOTHING for part in both)) for both in parts]


class WithAverage:
    """Compares with the element-wise average of all states before, which the first one starts.

    Args:
        groups: All groups.
        factored: Per group, whether it is formed from factors.
        drift: How to compare.
    """

    def __init__(self, groups: list[Group], factored: Bools, drift: DriftSpec) -> None:
        self._workshop = Workshop(groups, factored, drift)
        self._averages: dict[int, Floats32] = {}
        self._decay = np.float32(drift.compare_decay)
        self._share = np.float32(1.0 - drift.compare_decay)

    def compare(self, states: list[State], fresh: Sequence[int], known: Bools) -> Floats:
        """See `Comparison`."""
        found = np.zeros((2, len(known)))
        (side,) = self._workshop.enter(states)
        old, new = ([index for index in fresh if (index in self._averages) == there] for there in (True, False))
        for batch in self._workshop.batches(old):
            found[0, batch.members] = self._compare_batch(batch, side)
        for batch in self._workshop.batches(new):
            for number, index in enumerate(batch.members):
                self._averages[index] = batch.values_of(number, self._workshop.data(batch, side))
        return found

    def _compare_batch(self, batch: Batch, side: Side) -> Floats:
        """Distances to the averages as they are; then each becomes `decay·E + (1-decay)·F`, in float32."""
        averages = [self._averages[index] for index in batch.members]
        reference, data = np.concatenate(averages), self._workshop.data(batch, side)
        if batch.is_product:
            current = batch.distributions([data])
            for number, average in enumerate(averages):
                self._include(batch.values_of(number, data), [average])
        else:
            values = batch.values(data)
            self._include(values.copy(), averages)
            current = Formed(values, batch.sizes)
        return np.sqrt(self._workshop.divergences(batch, Formed(reference, batch.sizes), current))

    def _include(self, values: Floats32, averages: Sequence[Floats32]) -> None:
        values *= self._share
        start = 0
        for average in averages:
            np.multiply(average, self._decay, out=average)
            np.add(average, values[start : start + average.size], out=average)
            start += average.size

    def keep(self, active: Bools) -> None:
        """See `Comparison`."""
        self._workshop.keep()
        self._averages = {index: average for index, average in self._averages.items() if active[index]}

    def state(self) -> Arrays:
        """See `Comparison`."""
        return {f"average/{index}": average for index, average in self._averages.items()}

    def load_state(self, arrays: Arrays) -> None:
        """See `Comparison`."""
        self._averages = {int(index): average for index, average in below("average", arrays).items()}


def owners_of(groups: Iterable[Group]) -> frozenset[str]:
    """Their layers and parameters."""
    return frozenset(name for group in groups for name in (group.layer, *(member.parameter for member in group.members)))
