"""Distributions of products, against all their values formed and compared one by one."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fat_ray.fisher.compare import js_divergences
from fat_ray.fisher.distributions import Formed, Products
from fat_ray.fisher.drift import Centre, Floats32, Mode, js_distance, log_of, smallest_reaching

Factors = tuple[Floats32, Floats32]
KINDS: list[tuple[Mode, Centre]] = [("log", "none"), ("log", "median"), ("raw", "none")]


@st.composite
def factors(draw: st.DrawFn) -> tuple[Factors, Factors]:
    """Two states of D groups of one shape: zeros, ties, values from denormal to huge, and sometimes the same state twice."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 11, 12, 30, 70])), draw(st.sampled_from([1, 3, 12, 40, 150]))
    spread, zeros, level = (
        draw(st.sampled_from([0.0, 0.1, 1.0, 4.0])),
        draw(st.sampled_from([0.0, 0.01, 0.3, 0.9])),
        draw(st.floats(-42, 5)),
    )
    steps = draw(st.sampled_from([None, 2, 4]))

    def vectors(length: int) -> Floats32:
        values = rng.lognormal(0, spread, (shape[0], length))
        values[rng.random(values.shape) < zeros] = 0
        return (values if steps is None else np.round(values * steps) / steps).astype(np.float32)

    reference, current = ((vectors(shape[1]) * np.float32(10.0**level), vectors(shape[2])) for _ in range(2))
    return reference, reference if draw(st.booleans()) and draw(st.booleans()) else current


def products_of(pairs: Iterable[tuple[Floats32, Floats32]]) -> Products:
    """Vectors that are the same object are told once."""
    pairs = list(pairs)
    long = {id(second): second for _, second in pairs}
    return Products([first for first, _ in pairs], list(long.values()), np.array([list(long).index(id(second)) for _, second in pairs]))


def formed_of(vectors: list[Floats32]) -> Formed:
    return Formed(np.concatenate(vectors), [vector.size for vector in vectors])


def formed(state: Factors, index: int) -> Floats32:
    return np.outer(state[0][index], state[1][index]).ravel()


@pytest.mark.timeout(50)
@settings(max_examples=60, deadline=None)
@given(factors(), st.sampled_from(KINDS), st.sampled_from([2, 16, 64]), st.booleans())
def test_distances_are_those_of_the_definition(
    states: tuple[Factors, Factors], kind: tuple[Mode, Centre], bins: int, given_values: bool
) -> None:
    mode, centre = kind
    reference = (
        formed_of([formed(states[0], i) for i in range(len(states[0][0]))]) if given_values else products_of(zip(*states[0], strict=True))
    )
    found = np.sqrt(js_divergences(reference, products_of(zip(*states[1], strict=True)), mode=mode, bins=bins, centre=centre))
    expected = [js_distance(*(formed(state, i) for state in states), mode=mode, bins=bins, centre=centre) for i in range(len(found))]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.timeout(30)
@settings(max_examples=40, deadline=None)
@given(factors(), st.integers(0, 2**32 - 1))
def test_counts_and_ranges_at_thresholds_that_are_values_or_their_neighbours(states: tuple[Factors, Factors], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for index in range(len(states[0][0])):
        values = np.sort(formed(states[0], index))
        chosen = rng.choice(values, 5)
        marks = np.concatenate([chosen, np.nextafter(chosen, np.float32(np.inf)), np.nextafter(chosen, np.float32(0)), [0, np.inf]]).astype(
            np.float32
        )
        marks.sort()
        one = products_of([(states[0][0][index], states[0][1][index])])
        low, high = np.sort(rng.integers(-1, len(marks) + 1, (2, 3)), axis=0)[:, :, None]
        for distribution in (one, formed_of([formed(states[0], index)])):
            counts = np.searchsorted(values, marks)
            np.testing.assert_array_equal(distribution.counts(marks[None])[0], counts)
            located = distribution.locate(marks[None])
            np.testing.assert_array_equal(located.counts[0], counts)
            inside, lengths = located.between(low, high)
            ends = [0, *counts.tolist(), values.size]
            expected = [values[ends[start + 1] : ends[stop + 1]] for start, stop in zip(low[:, 0], high[:, 0], strict=True)]
            assert lengths[:, 0].tolist() == [part.size for part in expected]
            found = np.split(inside, lengths.ravel().cumsum()[:-1])
            for part, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(np.sort(part), wanted)
            np.testing.assert_array_equal(distribution.extremes()[0], values[[0, -1]])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 300)), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_distributions_of_all_lengths_side_by_side(shapes: list[tuple[int, int]], seed: int) -> None:
    """Two distributions share their longer vector, as the blocks of a layer do."""
    rng = np.random.default_rng(seed)
    states = [[(vector(rng, rows), vector(rng, columns)) for rows, columns in shapes] for _ in range(2)]
    for state in states:
        state.append((vector(rng, 7), state[0][1]))
    values = [[np.outer(*pair).ravel() for pair in state] for state in states]
    for mode, centre in KINDS:
        expected = [js_distance(a, b, mode=mode, bins=16, centre=centre) for a, b in zip(*values, strict=True)]
        for reference, current in (
            (products_of(states[0]), products_of(states[1])),
            (formed_of(values[0]), products_of(states[1])),
            (formed_of(values[0]), formed_of(values[1])),
        ):
            found = np.sqrt(js_divergences(reference, current, mode=mode, bins=16, centre=centre))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def vector(rng: np.random.Generator, length: int) -> Floats32:
    values = rng.lognormal(-12, 2, length) * (rng.random(length) > 0.2)
    return values.astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(st.floats(-12.001, 38), st.floats(-30, 30), st.booleans())
def test_smallest_reaching(log: float, shift: float, centred: bool) -> None:
    """The number reaches the edge, and the one before it does not."""
    shift = shift if centred else 0.0
    edge = np.array([log - shift])
    (found,) = smallest_reaching(edge, shift)
    assert log_of(np.array([found]))[0] - shift >= edge[0]
    if found > 0:
        assert log_of(np.array([np.nextafter(found, np.float32(0))]))[0] - shift < edge[0]
