"""The drift of docs/method.md written for clarity: all values of a group, numpy.percentile, numpy.histogram, nothing clever."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from fat_ray.fisher.comparison import Bools, Comparison, Floats, Floats32, owners_of
from fat_ray.fisher.drift import automatic_bins
from fat_ray.fisher.flat import Arrays
from fat_ray.fisher.groups import Group
from fat_ray.fisher.meter import DriftMeter
from fat_ray.fisher.state import State, at_scale_of, group_values, mean
from fat_ray.spec.run import DriftSpec, FisherSpec


def divergence(reference: Floats32, current: Floats32, *, mode: str, bins: int, centre: str) -> float:
    """Square of the Jensen-Shannon distance between the distributions of two states of a group."""
    states = [np.abs(state).astype(np.float64) for state in (reference, current)]
    if mode == "log":
        states = [np.log10(state + 1e-12) for state in states]
        if centre == "median":
            states = [state - np.median(state) for state in states]
        low, high = np.percentile(np.concatenate(states), [1, 99])
    else:
        low, high = min(state.min() for state in states), max(state.max() for state in states)
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    p, q = (probabilities(np.histogram(state, edges)[0]) for state in states)
    m = 0.5 * (p + q)
    return max(0.0, float(0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(q * np.log(q / m))))


def probabilities(counts: Floats) -> Floats:
    """Counts plus 1e-12 as probabilities of at least 1e-12."""
    masses = counts + 1e-12
    masses = np.maximum(masses / masses.sum(), 1e-12)
    normal: Floats = masses / masses.sum()
    return normal


class PlainComparison:
    """Compares groups one by one; see `fat_ray.fisher.comparison`.

    Args:
        groups: All groups.
        factored: Per group, whether it is formed from factors.
        drift: How to compare.
    """

    def __init__(self, groups: list[Group], factored: Bools, drift: DriftSpec) -> None:
        self._groups, self._factored, self._drift = groups, factored, drift
        self._previous: list[State] = []
        self._averages: dict[int, Floats32] = {}

    def compare(self, states: list[State], fresh: Sequence[int], known: Bools) -> Floats:
        """Against the previous states, or the element-wise averages of all before."""
        found = np.zeros((2, len(known)))
        if self._drift.compare == "average":
            for index in fresh:
                found[0, index] = self._distance_to_average(index, self._values(index, states[0]))
        elif self._previous:
            self._compare_with_previous(states, [index for index in fresh if known[index]], found)
        owners = owners_of(self._groups)
        self._previous = [new.over(old, owners) for new, old in zip(states, self._previous or states, strict=True)]
        return found

    def _compare_with_previous(self, states: list[State], chosen: Sequence[int], found: Floats) -> None:
        previous = [before.only(now) for before, now in zip(self._previous, states, strict=True)]
        states = [now.only(before) for before, now in zip(previous, states, strict=True)]
        if len(states) == 1:
            for index in chosen:
                found[0, index] = np.sqrt(self._divergence(index, self._values(index, previous[0]), self._values(index, states[0])))
            return
        (before_a, before_b), (now_a, now_b), (scaled_a, scaled_b) = previous, states, at_scale_of(states, previous)
        sides = [mean(before_a, before_b), mean(now_a, now_b), mean(now_a, scaled_b), mean(scaled_a, now_b)]
        for index in chosen:
            before, now, mixed, other = (self._values(index, side) for side in sides)
            noise = self._divergence(index, mixed, other)
            found[:, index] = self._divergence(index, before, now) - noise, noise

    def _distance_to_average(self, index: int, values: Floats32) -> float:
        if index not in self._averages:
            self._averages[index] = values
            return 0.0
        average, decay = self._averages[index], self._drift.compare_decay
        self._averages[index] = np.float32(decay) * average + np.float32(1.0 - decay) * values
        return float(np.sqrt(self._divergence(index, average, values)))

    def _divergence(self, index: int, reference: Floats32, current: Floats32) -> float:
        drift = self._drift
        bins = automatic_bins(self._groups[index].elements) if drift.bins == "auto" else drift.bins
        return divergence(reference, current, mode=drift.distance, bins=bins, centre=drift.centre)

    def _values(self, index: int, state: State) -> Floats32:
        return group_values(self._groups[index], state, factored=bool(self._factored[index]))

    def keep(self, active: Bools) -> None:
        """Everything."""

    def state(self) -> Arrays:
        """Not needed here."""
        raise NotImplementedError

    def load_state(self, arrays: Arrays) -> None:
        """Not needed here."""
        raise NotImplementedError


class PlainMeter(DriftMeter):
    """The same states, compared plainly."""

    def __init__(self, model: nn.Module, groups: list[Group], fisher: FisherSpec, drift: DriftSpec) -> None:
        super().__init__(model, groups, fisher, drift)
        self._comparison: Comparison = PlainComparison(groups, self.factored, drift)
