"""Checkpoints on disk: whole or passed over, whatever happened to them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fat_ray.engine.vault import (
    MANIFEST,
    NewerCheckpointError,
    begin,
    check,
    checkpoint_path,
    checkpoints,
    prune,
    remove,
    runs_with_checkpoints,
    seal,
    step_of,
    temporary_path,
)
from fat_ray.errors import RecordError

RUN = "run-s0"


def save(directory: Path, step: int, run: str = RUN, content: bytes = b"weights") -> Path:
    path = checkpoint_path(directory, run, step)
    begin(path)
    (temporary_path(path) / "model.safetensors").write_bytes(content)
    (temporary_path(path) / "state.json").write_text("{}")
    seal(path, run)
    return path


def rewrite(path: Path, **values: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **values}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda path: flip(path / "model.safetensors"), "model.safetensors is damaged"),
    "a torn file": (lambda path: (path / "model.safetensors").write_bytes(b"we"), "2 bytes that are not the 7"),
    "a missing file": (lambda path: (path / "state.json").unlink(), "state.json cannot be read"),
    "no seal": (lambda path: (path / MANIFEST).unlink(), "not a whole checkpoint"),
    "a torn seal": (lambda path: (path / MANIFEST).write_text('{"format": "fat'), "not a whole checkpoint"),
    "a foreign seal": (lambda path: (path / MANIFEST).write_text('{"format": "other", "version": "1.0", "files": {}}'), "not a checkpoint"),
    "a list": (lambda path: (path / MANIFEST).write_text("[]"), "not a whole checkpoint"),
    "another run": (lambda path: rewrite(path, run="run-s1"), "not that of run-s0"),
    "another step": (lambda path: rewrite(path, step=5), "says run-s0, step 5"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path, 4)
    check(path, RUN)
    harm, message = DAMAGES[damage]
    harm(path)
    with pytest.raises(RecordError, match=message):
        check(path, RUN)


def test_a_newer_major_version_is_refused_and_a_newer_minor_one_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 4)
    rewrite(path, version="1.7")
    check(path, RUN)
    rewrite(path, version="2.0")
    with pytest.raises(NewerCheckpointError, match=r"version 2\.0, this program reads up to 1\.0"):
        check(path, RUN)


def test_the_newest_come_first_and_only_sealed_ones_exist(tmp_path: Path) -> None:
    for step in (2, 100_000_000, 30):
        save(tmp_path, step)
    begin(checkpoint_path(tmp_path, RUN, 40))
    assert [step_of(path) for path in checkpoints(tmp_path, RUN)] == [100_000_000, 30, 2]


def test_prune_keeps_the_newest_and_removes_what_killed_writers_left(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    begin(checkpoint_path(tmp_path, RUN, 8))
    prune(tmp_path, RUN, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints" / RUN).iterdir()) == ["step-00000004", "step-00000006"]


def test_a_step_that_is_saved_again_replaces_what_lay_there(tmp_path: Path) -> None:
    flip(save(tmp_path, 4) / "model.safetensors")
    path = save(tmp_path, 4, content=b"mended.")
    check(path, RUN)
    assert (path / "model.safetensors").read_bytes() == b"mended."
    remove(path)
    remove(path)
    assert checkpoints(tmp_path, RUN) == []


def test_runs_with_checkpoints_are_found(tmp_path: Path) -> None:
    assert runs_with_checkpoints(tmp_path) == []
    save(tmp_path, 1, "t0001-s0")
    save(tmp_path, 1, "none-s0")
    assert runs_with_checkpoints(tmp_path) == ["none-s0", "t0001-s0"]
