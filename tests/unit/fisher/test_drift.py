"""The fast distance against its definition written for clarity, recorded distances, and the properties it promises."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fat_ray.fisher.drift import MAX_DISTANCE, Centre, Floats, Floats32, Mode, js_distance

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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.array([], np.float32), "current must hold at least one value, but is empty"),
        (np.array([1.0, np.nan], np.float32), "current must be finite, but 1 of its 2 values are NaN or infinite"),
        (np.array([np.inf], np.float32), "current must be finite, but 1 of its 1 values are NaN or infinite"),
        (np.array([1j]), "current must hold real numbers, not complex128"),
        (np.array(["a"]), "current must hold real numbers, not <U1"),
    ],
)
def test_refuses_what_has_no_distribution(bad: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        js_distance(np.ones(3, np.float32), bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "linear"}, "mode must be 'log' or 'raw'"),
        ({"centre": "mean"}, "centre 'none' or 'median'"),
        ({"mode": "raw", "centre": "median"}, "needs centre='none'"),
        ({"bins": 0}, "bins must be a whole number from 1, not 0"),
        ({"bins": 2.5}, "bins must be a whole number from 1, not 2.5"),
        ({"bins": True}, "bins must be a whole number from 1, not True"),
    ],
)
def test_refuses_options_that_it_does_not_know(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        js_distance(np.ones(3), np.ones(3), **options)


@pytest.mark.parametrize("mode", ["log", "raw"])
def test_what_is_constant_has_a_distance_too(mode: Mode) -> None:
    for value in (0.0, 1e-30, 1.0, 1e30):
        assert js_distance(np.full(5, value), np.full(3, value), mode=mode) == pytest.approx(0, abs=1e-12)
    assert js_distance(np.full(5, 1.0), np.full(3, 2.0), mode=mode) == pytest.approx(MAX_DISTANCE, abs=1e-9)
    assert js_distance(np.array(3.0), np.array([3.0]), mode=mode) == 0


@pytest.mark.parametrize("mode", ["log", "raw"])
def test_shape_sign_type_and_size_do_not_matter(mode: Mode) -> None:
    rng = np.random.default_rng(0)
    reference, current = rng.lognormal(size=(20, 30)), rng.lognormal(size=77)
    expected = js_distance(reference, current, mode=mode)
    assert js_distance(-reference.T.ravel(), current[::-1], mode=mode) == expected
    single = js_distance(reference.astype(np.float32), current.astype(np.float32), mode=mode)
    assert js_distance(reference.astype(np.float32).astype(np.float64), current.astype(np.float32), mode=mode) == single
    assert js_distance(np.arange(9), np.arange(9) ** 2, mode=mode) == js_distance(np.arange(9.0), np.arange(9.0) ** 2, mode=mode)


def test_double_precision_is_kept() -> None:
    """What float32 cannot tell apart is told apart."""
    values = np.linspace(1, 1 + 1e-9, 1000)
    assert js_distance(values, values + 5e-10) > 0.3
    assert js_distance(values.astype(np.float32), (values + 5e-10).astype(np.float32)) == 0
