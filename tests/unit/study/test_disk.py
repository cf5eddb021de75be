"""Space for checkpoints and records: asked for before a study, looked after while it runs."""

from pathlib import Path
from typing import Any

import pytest

from fat_ray.errors import OutputError
from fat_ray.records.manifest import MIN_FREE_BYTES
from fat_ray.study.disk import DiskGuard, Space, check_space, space
from fat_ray.study.ledger import Close, Ledger
from tests.support.small_studies import small_study

pytestmark = pytest.mark.cpu_limit(10)  # imports Ray Tune

MIB = 2**20
NEED = Space(checkpoint_bytes=100 * MIB, live=6, kept=2, concurrency=2)


@pytest.mark.parametrize(
    ("sections", "concurrency", "copies", "live", "kept"),
    [
        ({}, 1, 3, 3, 2),  # AdamW: weights and two moments; two checkpoints, and one that is being written
        ({}, 4, 3, 12, 2),
        ({"train": {"steps": 8, "optimizer": {"name": "sgd"}}}, 1, 2, 3, 2),
        ({"seeds": [0, 1, 2]}, 2, 3, 14, 6),
        ({"train": {"steps": 8, "checkpoint": {"keep": 1}}}, 1, 3, 2, 1),
        ({"train": {"steps": 8, "checkpoint": {"retain": "all"}}}, 1, 3, 3, 10),  # three trials and two baselines
        ({"train": {"steps": 8, "checkpoint": {"every": 0}}}, 4, 0, 0, 0),
        ({"baselines": ["lora"]}, 1, 4, 3, 2),
        ({"preset": "released"}, 1, 4, 3, 2),  # an element-wise average of the Fisher
        ({"search": {"train.optimizer.name": {"type": "categorical", "choices": ["sgd", "adamw"]}}}, 1, 3, 3, 2),
    ],
)
def test_the_estimate_counts_checkpoints_of_trials_that_run_and_that_are_kept(
    sections: dict[str, Any], concurrency: int, copies: int, live: int, kept: int
) -> None:
    need = space(small_study(**sections), weights_bytes=10 * MIB, concurrency=concurrency)
    assert need == Space(copies * 10 * MIB, live, kept, concurrency)
    assert need.needed_bytes == MIN_FREE_BYTES + (live + kept) * copies * 10 * MIB


def test_too_little_space_is_refused_with_the_numbers(tmp_path: Path) -> None:
    check_space(tmp_path, NEED, free=lambda _: 864 * MIB)
    with pytest.raises(OutputError) as caught:
        check_space(tmp_path, NEED, free=lambda _: 863 * MIB)
    message = str(caught.value)
    for part in ("863.0 MiB free", "about 864.0 MiB", "8 checkpoints of 100.0 MiB", "2 trials at a time", "budget.concurrency"):
        assert part in message


class Disk:
    """A disk whose free space is what it is told to be."""

    def __init__(self, *free_mib: int) -> None:
        self.free = [count * MIB for count in free_mib]
        self.pruned = 0

    def __call__(self, path: Path) -> int:
        return self.free.pop(0) if len(self.free) > 1 else self.free[0]

    def prune(self) -> None:
        self.pruned += 1


def guard(disk: Disk, ledger: Ledger, directory: Path) -> DiskGuard:
    return DiskGuard(directory, ledger, NEED, disk.prune, free=disk)


def test_enough_space_is_no_matter(tmp_path: Path) -> None:
    disk, ledger = Disk(264), Ledger(3)
    guard(disk, ledger, tmp_path).look()
    assert (disk.pruned, ledger.notes, ledger.close) == (0, [], None)


def test_little_space_is_warned_of_once_and_what_nobody_needs_is_removed(tmp_path: Path) -> None:
    disk, ledger = Disk(263, 300, 250, 300), Ledger(3)
    watcher = guard(disk, ledger, tmp_path)
    watcher.look()
    watcher.look()
    assert (disk.pruned, ledger.close) == (2, None)
    [note] = ledger.notes
    assert note.startswith(f"little disk space: 263.0 MiB free at {tmp_path}, less than the 264.0 MiB that")


def test_if_that_is_not_enough_the_study_ends_in_good_order(tmp_path: Path) -> None:
    disk, ledger = Disk(200, 210), Ledger(3)
    watcher = guard(disk, ledger, tmp_path)
    watcher.on_step_begin(0, [])
    assert ledger.close is Close.OUT_OF_DISK
    assert ledger.notes[1:] == ["too little disk space: running trials were stopped, and the rest was left out"]
    watcher.on_step_begin(1, [])
    assert disk.pruned == 1


def test_it_looks_every_few_seconds_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, disk, ledger = [0.0], Disk(200, 300), Ledger(3)
    monkeypatch.setattr("fat_ray.study.disk.time.monotonic", lambda: clock[0])
    watcher = guard(disk, ledger, tmp_path)
    for clock[0] in (0.0, 1.0, 4.9):
        watcher.on_step_begin(0, [])
    disk.free = [200 * MIB, 300 * MIB]
    assert disk.pruned == 1
    clock[0] = 5.1
    watcher.on_step_begin(0, [])
    assert disk.pruned == 2
