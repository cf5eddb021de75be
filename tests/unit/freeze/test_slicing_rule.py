"""The cost rule: what it may depend on, and in which direction."""

from collections.abc import Callable

import pytest
from torch import nn

from fat_ray.freeze.sliced import Cut, slice_layer
from fat_ray.freeze.slicing_rule import worth_slicing


def cut(extent: int, num_runs: int, active: float = 0.5) -> Cut:
    size = int(extent * active) // num_runs
    return Cut(0, tuple((index * extent // num_runs, index * extent // num_runs + size) for index in range(num_runs)))


def most_runs(module: nn.Module, positions: int | None, active: float = 0.5) -> int:
    """The largest number of runs, among powers of two, that are worth it; asserts that fewer always are."""
    extent = module.weight.shape[0]
    worth = [worth_slicing(module, "weight", cut(extent, 2**power, active), positions) for power in range(5)]
    assert worth == sorted(worth, reverse=True)
    return 2 ** sum(worth) // 2


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 64), lambda: nn.LayerNorm(64), lambda: nn.Conv2d(1, 64, 1)])
def test_one_run_is_always_worth_it_and_many_of_a_small_layer_are_not(make: Callable[[], nn.Module]) -> None:
    assert most_runs(make(), None) == 1


def test_what_is_saved_pays_for_runs() -> None:
    few = most_runs(nn.Linear(256, 256), 512)
    assert most_runs(nn.Linear(256, 256), 4096) > few > 1
    assert most_runs(nn.Linear(1024, 256), 512) > few
    assert most_runs(nn.Linear(256, 256), 512, active=0.125) > few > most_runs(nn.Linear(256, 256), 512, active=0.9)
    assert most_runs(nn.Linear(256, 256), None) <= few


def test_only_computed_gradients_count_per_position() -> None:
    embedding, linear = nn.Embedding(256, 256), nn.Linear(256, 256)
    assert most_runs(embedding, 10_000) == most_runs(embedding, 1) < most_runs(linear, 10_000)


def test_depthwise_convolutions_are_slow_and_save_more() -> None:
    depthwise, plain = nn.Conv2d(256, 256, 5, groups=256), nn.Conv2d(1, 256, 5)
    assert most_runs(depthwise, 1000) == most_runs(plain, 1000) > 1  # the same multiplications, and none forms a matrix product
    wide = nn.Conv2d(2, 128, 5)
    assert wide.weight.numel() == plain.weight.numel()
    assert most_runs(wide, 1000) < most_runs(plain, 1000)
    assert most_runs(nn.Conv2d(256, 256, 3, groups=256), 1000) == 1  # computed as a whole


def test_columns_count_as_rows_do_and_a_sliced_layer_as_a_plain_one() -> None:
    layer = nn.Linear(64, 64)
    answers = []
    for num_runs in (1, 2, 4, 16):
        rows = cut(64, num_runs)
        plain = worth_slicing(layer, "weight", rows, 512)
        assert worth_slicing(layer, "weight", Cut(1, rows.runs), 512) == plain
        sliced = nn.Linear(64, 64)
        slice_layer(sliced, {"weight": rows})
        assert worth_slicing(sliced, "weight", rows, 512) == plain
        answers.append(plain)
    assert answers[0]
    assert not answers[-1]
