import itertools

import pytest

from fat_ray.errors import DataError
from fat_ray.tasks.crack.split import Split, grouped_split

GROUPS = [str(i // 3) for i in range(60)]


def positions(split: Split) -> list[list[int]]:
    return [split.train, split.val, split.test]


def test_every_image_is_in_exactly_one_split_and_no_group_in_two() -> None:
    split = grouped_split(GROUPS, 0.2, 0.2, 0)
    assert sorted(itertools.chain(*positions(split))) == list(range(60))
    groups = [{GROUPS[index] for index in indices} for indices in positions(split)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


@pytest.mark.parametrize("seed", range(5))
def test_sizes_follow_the_fractions(seed: int) -> None:
    split = grouped_split(GROUPS, 0.2, 0.1, seed)
    assert [len(indices) for indices in positions(split)] == [42, 12, 6]


def test_split_is_decided_by_the_seed() -> None:
    assert grouped_split(GROUPS, 0.2, 0.2, 1) == grouped_split(GROUPS, 0.2, 0.2, 1)
    assert grouped_split(GROUPS, 0.2, 0.2, 1) != grouped_split(GROUPS, 0.2, 0.2, 2)


def test_split_does_not_depend_on_the_order_of_the_images() -> None:
    split, reverse = grouped_split(GROUPS, 0.2, 0.2, 0), grouped_split(GROUPS[::-1], 0.2, 0.2, 0)
    assert {GROUPS[index] for index in split.test} == {GROUPS[::-1][index] for index in reverse.test}


def test_split_stays_the_same_over_versions() -> None:
    assert grouped_split([str(i) for i in range(10)], 0.2, 0.2, 0) == Split(train=[0, 1, 2, 5, 6, 8], val=[3, 9], test=[4, 7])


def test_group_that_does_not_fit_goes_to_train() -> None:
    split = grouped_split(["big"] * 8 + ["a", "b"], 0.1, 0.1, 0)
    assert split.train == list(range(8))
    assert sorted(split.val + split.test) == [8, 9]


@pytest.mark.parametrize(
    ("groups", "empty"),
    [(["a"], "test"), (["a"] * 10, "test"), (["a"] * 9 + ["b"], "val"), (["a", "b"], "test")],
)
def test_empty_split_is_refused_with_the_numbers(groups: list[str], empty: str) -> None:
    message = rf"the {empty} split is empty: {len(groups)} images in {len(set(groups))} groups .* task.val_fraction = 0.2"
    with pytest.raises(DataError, match=message):
        grouped_split(groups, 0.2, 0.2, 0)
