from itertools import product

import numpy as np
import pytest

from fat_ray.analysis.statistics import EXACT_SEEDS, effect_sizes, holm, intervals, sign_flip, smallest_p


def rows(number: int, seeds: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, seeds))


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),  # R: p.adjust(p, "holm")
        ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02, np.nan, 0.03], [0.04, np.nan, 0.04]),
        ([], []),
    ],
)
def test_holm(p: list[float], expected: list[float]) -> None:
    assert holm(np.array(p)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("pairs", [2, 3, 5, 8])
@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_the_paired_test_counts_all_sign_flips(pairs: int, alternative: str) -> None:
    signs = np.array(list(product([-1, 1], repeat=pairs)))
    for row, found in zip(values := rows(6, pairs), sign_flip(values, alternative), strict=True):
        means, seen = (signs * row).mean(axis=1), row.mean()
        extreme = {
            "two-sided": np.abs(means) >= abs(seen) - 1e-12,
            "greater": means >= seen - 1e-12,
            "less": means <= seen + 1e-12,
        }[alternative]
        assert found == pytest.approx(extreme.mean())


def test_beyond_the_exact_test_random_flips_come_close() -> None:
    darwin = np.array([[49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]]) / 8  # Fisher 1935: 1726 of 2^15 flips
    assert darwin.shape[1] == EXACT_SEEDS + 1
    assert sign_flip(darwin)[0] == pytest.approx(1726 / 2**15, abs=0.01)


def test_one_pair_is_no_test_and_no_difference_is_no_evidence() -> None:
    assert np.isnan(sign_flip(np.array([[0.5]]))).all()
    assert sign_flip(np.zeros((1, 4))) == pytest.approx(1.0)


@pytest.mark.parametrize("pairs", [2, 4, 7, 14])
def test_no_p_is_smaller_than_the_smallest(pairs: int) -> None:
    all_alike = np.arange(1.0, pairs + 1)[None, :]
    assert sign_flip(all_alike)[0] == pytest.approx(smallest_p(pairs)) == pytest.approx(2 / 2**pairs)
    assert sign_flip(all_alike, "greater")[0] == pytest.approx(smallest_p(pairs, sides=1))


def test_intervals_lie_around_the_mean_within_the_values_and_move_with_them() -> None:
    values = rows(20, 7)
    found = intervals(values)
    assert ((found[:, 0] < values.mean(axis=1)) & (values.mean(axis=1) < found[:, 1])).all()
    assert ((values.min(axis=1) <= found[:, 0]) & (found[:, 1] <= values.max(axis=1))).all()
    assert intervals(3 * values + 2) == pytest.approx(3 * found + 2)


def test_an_interval_does_not_depend_on_what_stands_beside_it() -> None:
    values = rows(120, 5)
    assert np.array_equal(intervals(values)[77:79], intervals(values[77:79]))


def test_degenerate_intervals() -> None:
    assert np.isnan(intervals(np.array([[0.5], [0.25]]))).all()
    assert intervals(np.array([[0.1, 0.1, 0.1], [0.0, 0.0, 1.0]])) == pytest.approx(np.array([[0.1, 0.1], [0.0, 1.0]]))
    assert intervals(np.array([[0.25, 0.75]])) == pytest.approx(np.array([[0.25, 0.75]]))


def test_effect_sizes_are_corrected_for_few_seeds() -> None:
    values = rows(4, 3) + 1
    d_z = values.mean(axis=1) / values.std(axis=1, ddof=1)
    assert effect_sizes(values) == pytest.approx(d_z / np.sqrt(np.pi))  # J(2) = 1/√π
    values = rows(4, 11) + 1
    assert effect_sizes(values) == pytest.approx(values.mean(axis=1) / values.std(axis=1, ddof=1) * 0.9228, rel=1e-4)  # tables: J(10)
    assert np.isnan(effect_sizes(np.array([[0.5, 0.5, 0.5]]))).all()
    assert np.isnan(effect_sizes(rows(2, 2))).all()
