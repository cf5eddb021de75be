"""Running averages of named arrays, which come and go."""

from typing import Literal

import numpy as np
import pytest

from fat_ray.fisher.flat import Flat, RunningAverage


@pytest.mark.parametrize("kind", ["bias_corrected", "decayed"])
def test_each_array_has_its_own_average_and_count(kind: Literal["bias_corrected", "decayed"]) -> None:
    rng = np.random.default_rng(0)
    shapes = {("a", "row"): (3,), ("b", "row"): (2, 4), ("c", "row"): ()}
    seen: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in shapes}
    average = RunningAverage(kind, 0.8)
    for present in ("abc", "ac", "ac", "b", "cba", "abc"):
        arrays = {(name, "row"): rng.normal(size=shapes[name, "row"]) for name in present}
        found = average.update(arrays)
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            seen[key].append(array)
            expected = seen[key][0] if kind == "decayed" else np.zeros_like(array)
            for value in seen[key]:
                expected = 0.8 * expected + 0.2 * value
            correction = 1 - 0.8 ** len(seen[key]) if kind == "bias_corrected" else 1
            np.testing.assert_allclose(found[key], expected / correction, rtol=1e-6, atol=1e-9)


def test_arrays_of_other_names_are_left_out() -> None:
    flat = Flat.of({("a", "row"): np.arange(3.0), ("b", "row"): np.ones((2, 2))})
    assert flat.only(flat) is flat
    chosen = flat.only([("b", "row"), ("c", "row")])
    assert list(chosen) == [("b", "row")]
    np.testing.assert_array_equal(chosen["b", "row"], np.ones((2, 2)))
    np.testing.assert_array_equal(flat.means(), [1.0, 1.0])
