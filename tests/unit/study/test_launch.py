"""What happens around a study; that it runs is shown in tests/ray/test_study.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fat_ray.records.wandb import WandbMirror
from fat_ray.study.launch import launch
from tests.support.small_studies import small_study


@contextmanager
def one_node(*_: object) -> Iterator[list[dict[str, float]]]:
    yield [{"CPU": 8.0}]


@pytest.mark.cpu_limit(10)  # imports Ray Tune
def test_the_mirror_that_was_checked_is_the_one_that_mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[WandbMirror] = []
    checked: list[WandbMirror] = []
    used: list[WandbMirror] = []
    make = WandbMirror.__init__

    def count(mirror: WandbMirror, *args: Any) -> None:
        made.append(mirror)
        make(mirror, *args)

    def check(mirror: WandbMirror) -> None:
        checked.append(mirror)

    monkeypatch.setattr(WandbMirror, "__init__", count)
    monkeypatch.setattr(WandbMirror, "check_writable", check)
    monkeypatch.setattr("fat_ray.tasks.registry.check_task", lambda _: nn.Linear(4, 4))
    monkeypatch.setattr("fat_ray.study.launch.prepare", lambda _: None)
    monkeypatch.setattr("fat_ray.study.cluster.connect", one_node)
    monkeypatch.setattr("fat_ray.study.tune.run_trials", lambda *args: used.append(args[-1]))
    launch(small_study(), text="", directory=tmp_path / "study", quiet=True)
    assert len(made) == 1
    assert made == checked == used
