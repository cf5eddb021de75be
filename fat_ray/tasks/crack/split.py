"""Divides a data set into train, val and test so that no group is in two of them."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fat_ray.errors import DataError


@dataclass(frozen=True)
class Split:
    """Positions in the data set, ascending in each split."""

    train: list[int]
    val: list[int]
    test: list[int]


def grouped_split(groups: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Divides images by group.

    Groups are put in an order that depends on their names and the seed alone, the same on every machine. Each in turn goes to the first of
    test, val and train that still has room for all of it; what the fractions leave is train's.

    Args:
        groups: The group of each image.
        val_fraction: Share of the images for val, rounded to whole images and never exceeded.
        test_fraction: Same for test.
        seed: Of the order.

    Raises:
        DataError: A split would be empty.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    room = {"test": round(test_fraction * len(groups)), "val": round(val_fraction * len(groups)), "train": len(groups)}
    split: dict[str, list[int]] = {name: [] for name in room}
    for group in sorted(members, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        name = next(name for name in room if len(members[group]) <= room[name])
        split[name] += members[group]
        room[name] -= len(members[group])
    for name, indices in split.items():
        if not indices:
            raise DataError(
                f"the {name} split is empty: {len(groups)} images in {len(members)} groups cannot be divided with task.val_fraction = "
                f"{val_fraction} and task.test_fraction = {test_fraction}; give more images, smaller groups or other fractions"
            )
    return Split(**{name: sorted(indices) for name, indices in split.items()})
