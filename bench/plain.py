"""The drift of METHOD section 4, written for clarity: all values of a group, numpy.percentile, numpy.histogram, nothing clever."""

import numpy as np

from fat_ray.fisher.drift import automatic_bins
from fat_ray.fisher.meter import Bools, DriftMeter, Floats, Floats32
from fat_ray.fisher.state import UNKNOWN, State, at_scale_of, group_values, mean


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


class PlainMeter(DriftMeter):
    """The same states, compared plainly."""

    def _plain(self, index: int, reference: Floats32, current: Floats32) -> float:
        drift = self._drift
        bins = automatic_bins(self._sizes[index]) if drift.bins == "auto" else drift.bins
        return divergence(reference, current, mode=drift.distance, bins=bins, centre=drift.centre)

    def _values(self, index: int, state: State) -> Floats32:
        return group_values(self._groups[index], state, factored=bool(self.factored[index]))

    def _compare_with_previous(self, states: list[State], active: Bools) -> tuple[Floats, Bools]:
        found, previous = np.zeros((2, len(self._groups))), self._previous or [UNKNOWN for _ in states]
        previous = [before.only(now) for before, now in zip(previous, states, strict=True)]
        measured = self._known(previous[0], active)
        sides: list[State] = []
        if self.halves:
            states = [now.only(before) for before, now in zip(previous, states, strict=True)]
            (before_a, before_b), (now_a, now_b), (scaled_a, scaled_b) = previous, states, at_scale_of(states, previous)
            sides = [mean(before_a, before_b), mean(now_a, now_b), mean(now_a, scaled_b), mean(scaled_a, now_b)]
        for index in np.flatnonzero(measured).tolist():
            if not self.halves:
                found[0, index] = np.sqrt(self._plain(index, self._values(index, previous[0]), self._values(index, states[0])))
                continue
            before, now, mixed, other = (self._values(index, side) for side in sides)
            noise = self._plain(index, mixed, other)
            found[:, index] = self._plain(index, before, now) - noise, noise
        return found, measured

    def _compare_with_average(self, states: list[State], active: Bools) -> tuple[Floats, Bools]:
        found = np.zeros((2, len(self._groups)))
        present = self._known(states[0], active)
        for index in np.flatnonzero(present).tolist():
            values = self._values(index, states[0])
            if index not in self._elementwise:
                self._elementwise[index] = values
                continue
            average = self._elementwise[index]
            found[0, index] = np.sqrt(self._plain(index, average, values))
            decay = self._drift.compare_decay
            self._elementwise[index] = np.float32(decay) * average + np.float32(1.0 - decay) * values
        return found, present & (self._updates > 0)
