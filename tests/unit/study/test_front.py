"""How long the front has not grown, against a volume counted on a lattice."""

import random
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from fat_ray.study.front import trials_without_gain

NONE = None


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], 0),
        ([NONE, NONE], 2),
        ([[1.0]], 0),
        ([[1.0], [1.0], NONE, [1.5]], 3),
        ([[1.0], [0.5], [0.7]], 1),
        ([[1.0], [0.0], [0.0005 - 0.001]], 1),  # better by less than a thousandth of the range
    ],
)
def test_one_objective(outcomes: list[Sequence[float] | None], expected: int) -> None:
    assert trials_without_gain(outcomes, ["minimize"]) == expected
    assert trials_without_gain([None if v is None else [-v[0]] for v in outcomes], ["maximize"]) == expected


def test_a_new_end_of_the_front_counts_and_a_dominated_point_does_not() -> None:
    assert trials_without_gain([[0.5, 50.0], [0.9, 90.0]], ["maximize", "minimize"]) == 0
    assert trials_without_gain([[0.5, 50.0], [0.9, 90.0], [0.4, 95.0]], ["maximize", "minimize"]) == 1


@pytest.mark.parametrize("dimensions", [2, 3])
def test_growth_is_that_of_the_volume_counted_in_cells(dimensions: int) -> None:
    rng = random.Random(dimensions)
    corners = [[float(at != axis) for at in range(dimensions)] for axis in range(dimensions)]  # so that nothing is scaled
    centres = [[(cell + 0.5) / 10 for cell in cells] for cells in product(range(11), repeat=dimensions)]
    for _ in range(10):
        points = corners + [[rng.randrange(6) / 5 for _ in range(dimensions)] for _ in range(12)]
        ahead = [np.all(np.array(point) <= np.array(centres), axis=1) for point in points]
        num_cells = [int(np.any(ahead[: n + 1], axis=0).sum()) for n in range(len(points))]
        last_growth = max(n for n in range(len(points)) if n == 0 or num_cells[n] > num_cells[n - 1])
        assert trials_without_gain(points, ["minimize"] * dimensions) == len(points) - 1 - last_growth
