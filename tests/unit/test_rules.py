"""The decision mathematics against closed forms, and its promises under random input."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fat_ray import rules


def seen(*distances: float, smoothing: float = 0.9) -> rules.DriftHistory:
    history = rules.DriftHistory.empty(1)
    for distance in distances:
        history = rules.observe(history, np.array([distance]), np.array([True]), smoothing)
    return history


def test_first_smoothed_distance_is_the_distance_itself() -> None:
    assert seen(0.4).smoothed[0] == pytest.approx(0.4)


def test_smoothing_is_a_weighted_mean_of_all_distances() -> None:
    weights = np.array([0.9**2, 0.9, 1.0])
    expected = weights @ [0.5, 0.2, 0.8] / weights.sum()
    assert seen(0.5, 0.2, 0.8).smoothed[0] == pytest.approx(expected)


def test_without_smoothing_the_last_distance_counts() -> None:
    assert seen(0.5, 0.2, smoothing=0.0).smoothed[0] == pytest.approx(0.2)


def test_scores() -> None:
    history = seen(0.5, 0.2, 0.8, smoothing=0.0)
    assert rules.score(history, "mean")[0] == pytest.approx(0.5)
    assert rules.score(history, "last")[0] == pytest.approx(0.8)
    assert rules.score(history, "total_variation")[0] == pytest.approx(0.3 + 0.6)


def test_unmeasured_groups_keep_their_history_and_have_no_score() -> None:
    history = rules.observe(rules.DriftHistory.empty(2), np.array([0.3, 0.7]), np.array([True, False]), 0.9)
    assert rules.score(history, "mean")[0] == pytest.approx(0.3)
    assert np.isnan(rules.score(history, "mean")[1])
    again = rules.observe(history, np.array([9.0, 9.0]), np.array([False, False]), 0.9)
    assert again.smoothed.tolist() == history.smoothed.tolist()
    assert again.count.tolist() == [1, 0]


def test_threshold_uses_the_population_deviation_of_eligible_groups() -> None:
    scores = np.array([1.0, 3.0, 100.0])
    assert rules.threshold(scores, np.array([True, True, False]), -0.5) == pytest.approx(2.0 - 0.5 * 1.0)
    assert rules.threshold(scores, np.zeros(3, bool), -0.5) == -np.inf


def test_select_takes_the_lowest_first_until_the_cap() -> None:
    scores, elements = np.array([0.1, 0.2, 0.3, 0.9]), np.array([40, 40, 10, 10])
    chosen = rules.select(scores, np.ones(4, bool), elements, 0.5, floor=0.0, cap=0.5)
    assert chosen.freeze.tolist() == [True, False, True, False]  # the second does not fit beside the first, the third does
    assert chosen.limited_by == "cap"


def test_select_respects_the_floor_over_all_elements() -> None:
    scores, elements = np.array([0.1, 0.2, 0.9]), np.array([50, 30, 20])
    chosen = rules.select(scores, np.array([False, True, True]), elements, 0.5, floor=0.4, cap=1.0)
    assert not chosen.freeze.any()
    assert chosen.limited_by == "floor"


def test_select_never_freezes_the_highest() -> None:
    chosen = rules.select(np.array([0.1, 0.2]), np.ones(2, bool), np.array([5, 5]), 9.0, floor=0.0, cap=1.0)
    assert chosen.freeze.tolist() == [True, False]


@st.composite
def populations(draw: st.DrawFn) -> tuple[rules.Floats, rules.Bools, rules.Ints]:
    size = draw(st.integers(1, 30))
    scores = draw(arrays(np.float64, size, elements=st.floats(0, 1) | st.just(np.nan)))
    active = draw(arrays(np.bool_, size))
    elements = draw(arrays(np.int64, size, elements=st.integers(1, 10_000)))
    return scores, active & np.isfinite(scores), elements


@settings(max_examples=100, deadline=None)
@given(populations(), st.floats(-3, 3), st.floats(0, 1), st.floats(0.01, 1))
def test_limits_hold_whatever_the_scores(
    population: tuple[rules.Floats, rules.Bools, rules.Ints], strength: float, floor: float, cap: float
) -> None:
    scores, active, elements = population
    tau = rules.threshold(scores, active, strength)
    chosen = rules.select(scores, active, elements, tau, floor=floor, cap=cap)
    frozen = int(elements[chosen.freeze].sum())
    assert not (chosen.freeze & ~active).any()
    assert frozen <= cap * elements[active].sum()
    assert frozen == 0 or elements[active].sum() - frozen >= floor * elements.sum()
    assert (scores[chosen.freeze] < tau).all()
    assert not active.any() or (active & ~chosen.freeze).any()


class One(NamedTuple):
    """One decision to take, alone or as one row of many."""

    scores: rules.Floats
    errors: rules.Floats
    active: rules.Bools
    strength: float
    floor: float
    cap: float
    confidence: float

    def rule(self) -> rules.DriftRule:
        return rules.DriftRule(self.strength, self.floor, self.cap, self.confidence)


@st.composite
def decisions(draw: st.DrawFn) -> tuple[rules.Ints, list[One]]:
    """Decisions over the same groups; equal scores, unknown ones and unknown errors included."""
    size = draw(st.integers(1, 30))
    score = st.floats(-1, 1) | st.sampled_from([0.0, 0.25, np.nan])
    row = st.builds(
        One,
        arrays(np.float64, size, elements=score),
        arrays(np.float64, size, elements=st.floats(0, 1) | st.just(np.inf)),
        arrays(np.bool_, size),
        st.floats(-3, 3),
        st.floats(0, 1),
        st.floats(0.01, 1),
        st.sampled_from([0.0, 0.5, 2.0]),
    )
    return draw(arrays(np.int64, size, elements=st.integers(1, 10_000))), draw(st.lists(row, min_size=1, max_size=8))


def one_by_one(given: One, elements: rules.Ints) -> tuple[list[int], float, str]:
    """The decision in words: lowest first, group by group."""
    eligible = given.active & np.isfinite(given.scores)
    if not eligible.any():
        return [], -np.inf, ""
    tau = given.scores[eligible].mean() + given.strength * given.scores[eligible].std()
    upper = given.scores + given.confidence * given.errors if given.confidence else given.scores
    candidates = [group for group in range(elements.size) if given.active[group] and upper[group] < tau]
    highest = max((group for group in range(elements.size) if eligible[group]), key=lambda group: (upper[group], -group))
    active = int(elements[given.active].sum())
    limits = {"floor": active - int(np.ceil(given.floor * elements.sum())), "cap": int(given.cap * active)}
    frozen, room, limited_by = list[int](), min(limits.values()), ""
    for group in sorted(candidates, key=lambda group: upper[group]):
        if group == highest:
            continue
        if elements[group] > room:
            limited_by = min(limits, key=lambda limit: limits[limit])
            continue
        frozen.append(group)
        room -= int(elements[group])
    return sorted(frozen), tau, limited_by


@settings(max_examples=40, deadline=None)
@given(decisions())
def test_many_decisions_at_once_are_each_what_it_is_alone_to_the_bit(given: tuple[rules.Ints, list[One]]) -> None:
    elements, ones = given
    scores, errors, active = (np.stack([getattr(one, name) for one in ones]) for name in ("scores", "errors", "active"))
    columns = [np.array([getattr(one, name) for one in ones]) for name in ("strength", "floor", "cap", "confidence")]
    many = rules.decide_by_drift(scores, errors, active, elements, rules.DriftRule(*columns))
    for row, one in enumerate(ones):
        alone = rules.decide_by_drift(one.scores, one.errors, one.active, elements, one.rule())
        assert many.freeze[row].tolist() == alone.freeze.tolist()
        assert many.threshold[row] == alone.threshold
        assert many.limited_by[row] == alone.limited_by
        tau = float(alone.threshold)
        frozen, expected, limited_by = one_by_one(one, elements)
        assert tau == pytest.approx(expected, abs=1e-12)
        upper = one.scores + one.confidence * np.where(np.isfinite(one.errors), one.errors, 9.0)
        if not (np.abs(upper - tau) < 1e-12).any():  # two ways to sum may disagree about a score that is the threshold
            assert (np.flatnonzero(alone.freeze).tolist(), str(alone.limited_by)) == (frozen, limited_by)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (12, 5), elements=st.floats(-1, 1)), arrays(np.bool_, (12, 5)), arrays(np.bool_, 5))
def test_many_histories_at_once_are_each_what_it_is_alone_to_the_bit(
    distances: rules.Floats, measured: rules.Bools, present: rules.Bools
) -> None:
    smoothing, corrected = [0.0, 0.3, 0.9, 0.9], [True, True, True, False]
    rows = rules.begin(rules.DriftHistory.empty(5), present)
    alone = [rows] * len(smoothing)
    column = np.array(smoothing)[:, None]
    for distance, known in zip(distances, measured, strict=True):
        rows = rules.observe(rows, distance, known, column, corrected=np.array(corrected)[:, None])
        settings_ = zip(alone, smoothing, corrected, strict=True)
        alone = [rules.observe(one, distance, known, beta, corrected=divided) for one, beta, divided in settings_]
    for kind in ("mean", "last", "total_variation"):
        found = rules.score(rows, kind)
        for row, one in zip(found, alone, strict=True):
            assert np.array_equal(row, rules.score(one, kind), equal_nan=True)
    assert all(np.array_equal(rules.standard_error(rows), rules.standard_error(one)) for one in alone)


@pytest.mark.parametrize(("step", "due"), [(0, False), (4, False), (5, False), (6, True), (8, False), (9, True)])
def test_drift_decides_every_n_steps_after_the_warm_up(step: int, due: bool) -> None:
    assert rules.drift_is_due(step, 3, 5) == due


@settings(max_examples=100, deadline=None)
@given(populations(), st.floats(0, 1), st.integers(0, 2**31))
def test_random_selection_meets_its_target_to_within_the_smallest_active_group(
    population: tuple[rules.Floats, rules.Bools, rules.Ints], fraction: float, seed: int
) -> None:
    _, active, elements = population
    target = int(fraction * elements[active].sum())
    freeze = rules.select_random(active, elements, target, np.random.default_rng(seed))
    left = active & ~freeze
    remaining = int(elements[left].sum())
    assert not (freeze & ~active).any()
    assert remaining >= target
    assert not left.any() or remaining - target < elements[left].min()


def test_with_one_objective_the_best_is_chosen() -> None:
    values = {"a": [0.1], "b": [0.7], "c": [0.3]}
    assert rules.compromise(values, ["maximize"]) == "b"
    assert rules.compromise(values, ["minimize"]) == "a"


def test_with_two_objectives_the_nearest_to_the_ideal_point_is_chosen() -> None:
    values = {"accurate": [0.613, 0.97], "cheap": [0.493, 0.24], "both": [0.605, 0.42], "neither": [0.5, 0.9]}
    assert rules.compromise(values, ["maximize", "minimize"]) == "both"


@pytest.mark.parametrize("values", [{"only": [0.5, 3.0]}, {"only": [0.5, 3.0], "same": [0.5, 3.0]}])
def test_ties_and_ranges_without_extent_go_to_the_first(values: dict[str, list[float]]) -> None:
    assert rules.compromise(values, ["maximize", "minimize"]) == "only"


def test_select_first_takes_the_front_and_never_the_last() -> None:
    active, elements = np.array([False, True, True, True, True]), np.array([9, 1, 2, 3, 4])
    assert rules.select_first(active, elements, 7).tolist() == [False, True, True, False, False]
    assert rules.select_first(active, elements, 6.5).tolist() == [False, True, True, False, False]
    assert rules.select_first(active, elements, 0).tolist() == [False, True, True, True, False]
    assert not rules.select_first(active, elements, 99).any()


def test_select_smallest_keeps_what_fits_the_largest_always_and_the_unknown_first() -> None:
    values, elements = np.array([5.0, 4.0, 3.0, np.nan, 9.0]), np.array([3, 4, 1, 2, 100])
    active = np.array([True, True, True, True, False])
    assert rules.select_smallest(values, active, elements, 6).tolist() == [False, True, False, False, False]
    assert rules.select_smallest(values, active, elements, 5).tolist() == [False, True, True, False, False]
    assert rules.select_smallest(values, active, elements, 0).tolist() == [False, True, True, False, False]
    assert not rules.select_smallest(values, active, elements, 10).any()


def test_relative_change() -> None:
    previous, current = np.array([2.0, 2.0, 0.0, 0.0, np.nan, 1.0]), np.array([1.0, 3.0, 0.0, 1.0, 1.0, np.nan])
    assert np.array_equal(rules.relative_change(previous, current), [0.5, 0.5, 0.0, np.inf, np.nan, np.nan], equal_nan=True)


def test_select_settled_stops_at_the_first_that_moves_is_unknown_or_is_needed() -> None:
    change, elements = np.array([0.1, 0.2, np.nan, 0.1, 0.9, np.inf]), np.array([10, 10, 10, 10, 10, 10])
    assert rules.select_settled(change, elements, 100, target=0) == (2, pytest.approx(0.9))
    assert rules.select_settled(change, elements, 100, target=45) == (1, pytest.approx(0.9))
    assert rules.select_settled(change, elements, 10, target=0) == (0, pytest.approx(0.1))
    assert rules.select_settled(np.full(6, np.nan), elements, 50, target=0) == (0, -np.inf)
