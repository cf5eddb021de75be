import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fat_ray.rules import front_ranks


def test_front_of_two_objectives() -> None:
    points = [(0.6, 100.0), (0.5, 40.0), (0.5, 60.0), (0.4, 200.0), (0.6, 100.0)]
    assert front_ranks(points, ["maximize", "minimize"]) == [1, 1, 2, 3, 1]


def test_one_objective_gives_the_dense_rank() -> None:
    assert front_ranks([[3.0], [1.0], [3.0], [2.0]], ["maximize"]) == [1, 3, 1, 2]
    assert front_ranks([[3.0], [1.0], [3.0], [2.0]], ["minimize"]) == [3, 1, 3, 2]


def test_no_points() -> None:
    assert front_ranks([], ["maximize", "minimize"]) == []


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12))
def test_ranks_agree_with_the_definition(points: list[tuple[int, int, int]]) -> None:
    ranks = front_ranks([list(map(float, point)) for point in points], ["minimize"] * 3)

    def beats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    for (a, rank_a), (b, rank_b) in itertools.permutations(zip(points, ranks, strict=True), 2):
        assert not (beats(a, b) and rank_a >= rank_b)
    for point, rank in zip(points, ranks, strict=True):  # nobody is ranked lower than its beaters force it to
        beaters = [r for other, r in zip(points, ranks, strict=True) if beats(other, point)]
        assert rank == max(beaters, default=0) + 1
