"""The trial that speaks for a search."""

import pytest

from fat_ray.study.compromise import compromise


def test_with_one_objective_the_best_wins() -> None:
    assert compromise({"a": [0.1], "b": [0.7], "c": [0.3]}, ["maximize"]) == "b"
    assert compromise({"a": [0.1], "b": [0.7], "c": [0.3]}, ["minimize"]) == "a"


def test_with_two_the_nearest_to_the_ideal_point() -> None:
    values = {"accurate": [0.613, 0.97], "cheap": [0.493, 0.24], "both": [0.605, 0.42], "neither": [0.5, 0.9]}
    assert compromise(values, ["maximize", "minimize"]) == "both"


@pytest.mark.parametrize("values", [{"only": [0.5, 3.0]}, {"only": [0.5, 3.0], "same": [0.5, 3.0]}])
def test_degenerate_ranges_and_ties_go_to_the_first(values: dict[str, list[float]]) -> None:
    assert compromise(values, ["maximize", "minimize"]) == "only"
