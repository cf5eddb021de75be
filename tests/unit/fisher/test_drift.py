"""The fast distance against its definition written for clarity, recorded distances, and the properties it promises."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fat_ray.fisher.drift import MAX_DISTANCE, Centre, Floats, Floats32, js_distance

RECORDED = Path(__file__).parents[2] / "data" / "parity" / "js.npz"


def defined_distance(reference: Floats32, current: Floats32, bins: int = 64, centre: Centre = "none") -> float:
    """METHOD section 1, word by word, with NumPy's own percentile and histogram."""
    logs = [np.log10(np.abs(state).astype(np.float64) + 1e-12) for state in (reference, current)]
    if centre == "median":
        logs = [log - np.median(log) for log in logs]
    low, high = np.percentile(np.concatenate(logs), [1, 99])
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    p, q = (probabilities(np.histogram(log, edges)[0]) for log in logs)
    m = (p + q) / 2
    return float(np.sqrt(max(0.0, 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum())))


def probabilities(counts: Floats) -> Floats:
    masses = counts + 1e-12
    masses = np.maximum(masses / masses.sum(), 1e-12)
    return masses / masses.sum()


@st.composite
def state_pairs(draw: st.DrawFn) -> tuple[Floats32, Floats32]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([1, 2, 3, 8, 48, 333, 2000]))
    reference = rng.lognormal(draw(st.floats(-40, 5)), draw(st.floats(0, 4)), size)
    current = reference * rng.lognormal(0, draw(st.floats(0, 2)), size)
    current[rng.random(size) < draw(st.floats(0, 1))] = 0  # dead units
    return reference.astype(np.float32), current.astype(np.float32)


@pytest.mark.timeout(20)
@settings(max_examples=150, deadline=None)
@given(state_pairs(), st.sampled_from(["none", "median"]), st.sampled_from([2, 16, 64]))
def test_equals_its_definition(pair: tuple[Floats32, Floats32], centre: Centre, bins: int) -> None:
    assert js_distance(*pair, bins=bins, centre=centre) == pytest.approx(defined_distance(*pair, bins, centre), abs=1e-12)


def test_equals_the_recorded_distances() -> None:
    recorded = np.load(RECORDED)
    expected = recorded["js_log"]
    found = [js_distance(recorded[f"{i}/ref"], recorded[f"{i}/cur"]) for i in range(len(expected))]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(state_pairs())
def test_is_a_bounded_symmetric_distance(pair: tuple[Floats32, Floats32]) -> None:
    distance = js_distance(*pair)
    assert 0 <= distance <= MAX_DISTANCE + 1e-12
    assert js_distance(pair[1], pair[0]) == pytest.approx(distance, abs=1e-9)
    assert js_distance(pair[0], pair[0]) == 0


@pytest.mark.parametrize("scale", [2.0**-20, 0.5, 2.0, 2.0**20])
def test_centred_distance_does_not_see_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    state = rng.lognormal(0, 1, 4000).astype(np.float32)  # far above 1e-12, which is not scaled
    other = (state * np.float32(scale)).astype(np.float32)
    assert js_distance(state, other, centre="median") < 0.02
    assert js_distance(state, other, centre="none") > 0.05


@pytest.mark.parametrize("bad", [np.array([], np.float32), np.array([1.0, np.nan], np.float32), np.array([np.inf], np.float32)])
def test_refuses_what_has_no_distribution(bad: Floats32) -> None:
    with pytest.raises(ValueError, match="current must hold at least one finite value"):
        js_distance(np.ones(3, np.float32), bad)
