import random

import pytest

from fat_ray.spec.space import FloatRange, IntRange
from fat_ray.spec.study import StudySpec
from fat_ray.study.importance import ENOUGH_TRIALS, best_share, dominated_share, importances

SPACE = {
    "freeze.floor": {"type": "float", "low": 0.0, "high": 1.0},
    "freeze.every": {"type": "int", "low": 1, "high": 8},
    "drift.score": {"type": "categorical", "choices": ["mean", "last"]},
}


def space() -> dict[str, FloatRange | IntRange]:
    return StudySpec.model_validate({"name": "x", "search": SPACE}).search


def trials(count: int) -> list[tuple[dict[str, object], float]]:
    rng = random.Random(0)
    found = []
    for _ in range(count):
        params = {"freeze.floor": rng.random(), "freeze.every": rng.randint(1, 8), "drift.score": rng.choice(["mean", "last"])}
        found.append((params, params["freeze.floor"] + 0.01 * rng.random()))
    return found


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_setting_that_decides_is_the_most_important(direction: str) -> None:
    found = importances(space(), trials(60), direction)
    assert next(iter(found)) == "freeze.floor"
    assert found["freeze.floor"] > 0.8
    assert sum(found.values()) == pytest.approx(1.0)


def test_few_trials_say_nothing() -> None:
    assert importances(space(), trials(ENOUGH_TRIALS - 1), "maximize") == {}
    assert importances({}, trials(60), "maximize") == {}
    assert (best_share(20), best_share(50), best_share(500)) == (0.25, 0.1, 0.1)


def test_conditional_settings_and_values_from_elsewhere_do_no_harm() -> None:
    some = [
        ({key: value for key, value in params.items() if number % 2 or key != "freeze.every"}, value)
        for number, (params, value) in enumerate(trials(60))
    ]
    some.append(({"freeze.floor": 7.0, "train.steps": 3}, 0.5))  # outside the space: another study's
    assert next(iter(importances(space(), some, "maximize"))) == "freeze.floor"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1.0, 0.0]], 1.0),  # the best of both: the whole box
        ([[0.5, 5.0]], 0.25),
        ([[0.5, 0.0], [1.0, 5.0]], 0.75),
        ([[0.5, 5.0], [0.4, 6.0]], 0.25),  # the second is beaten
        ([[0.0, 10.0]], 0.0),
        ([[-1.0, 0.0]], 0.0),  # worse than the reference
        ([], 0.0),
    ],
)
def test_the_dominated_share_of_the_box(values: list[list[float]], expected: float) -> None:
    assert dominated_share(values, ["maximize", "minimize"], [1.0, 0.0], [0.0, 10.0]) == pytest.approx(expected)
