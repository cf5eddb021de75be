import errno
import json
import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from fat_ray.errors import OutputError, RecordError, SpecError
from fat_ray.records import files, manifest
from fat_ray.records.manifest import check_writable, create_study, discard_study, read_manifest, safe_arguments
from fat_ray.spec.space import FloatRange
from fat_ray.spec.study import StudySpec, as_json
from fat_ray.spec.task import CustomTaskSpec
from tests.support.runs import write_run

TEXT = "name: quick  # wörds\n"
SPEC = StudySpec(name="quick", search={"freeze.threshold": FloatRange(type="float", low=-1.0, high=0.5)})


def test_a_new_study_is_read_back(tmp_path: Path) -> None:
    made = create_study(tmp_path / "out" / "quick", SPEC, TEXT, command=["launch", "quick.yaml"])
    found = read_manifest(tmp_path / "out" / "quick")
    assert found == made
    assert found.name == "quick"
    assert found.command == ["launch", "quick.yaml"]
    assert timedelta(0) <= datetime.now(UTC) - found.created_at < timedelta(minutes=1)
    assert StudySpec.model_validate_json(json.dumps(found.spec)) == SPEC
    assert sorted(path.name for path in (tmp_path / "out" / "quick").iterdir()) == ["records", "study.json", "study.yaml"]
    assert (tmp_path / "out" / "quick" / "study.yaml").read_text(encoding="utf-8") == TEXT


def test_two_launches_have_different_ids(tmp_path: Path) -> None:
    assert create_study(tmp_path / "a", SPEC, TEXT).launch != create_study(tmp_path / "b", SPEC, TEXT).launch


def test_a_directory_that_holds_a_study_is_refused_and_left_alone(tmp_path: Path) -> None:
    create_study(tmp_path, SPEC, TEXT)
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(OutputError, match="already holds a study"):
        create_study(tmp_path, SPEC, "other")
    assert (tmp_path / "study.json").read_bytes() == before
    assert (tmp_path / "study.yaml").read_text(encoding="utf-8") == TEXT


def test_a_foreign_directory_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    for name in "dbca":
        (tmp_path / name).touch()
    with pytest.raises(OutputError, match=r"is not empty and holds no study \(a, b, c, …\)"):
        create_study(tmp_path, SPEC, TEXT)
    assert sorted(path.name for path in tmp_path.iterdir()) == list("abcd")


def test_the_second_of_two_launches_at_the_same_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = manifest._check_unused
    monkeypatch.setattr(manifest, "_check_unused", lambda directory: (check(directory), (directory / "records").mkdir()))
    with pytest.raises(OutputError, match="another launch"):
        create_study(tmp_path, SPEC, TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]  # the other's


@pytest.mark.parametrize("below", ["", "sub/dir"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="Not a directory"):
        create_study(tmp_path / "out" / below, SPEC, TEXT)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=f"cannot write in .*{os.strerror(code)}"):
        create_study(tmp_path, SPEC, TEXT)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_not_even_root_can_write_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot write in /proc/self/quick"):
        check_writable(Path("/proc/self/quick"))


def test_too_little_space_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(OutputError, match=r"3\.0 MiB free, a study needs at least 64\.0 MiB"):
        create_study(tmp_path / "new" / "quick", SPEC, TEXT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["study.yaml", "study.json"])
def test_a_disk_that_fills_meanwhile_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fill(path: Path, data: bytes) -> None:
        path.write_bytes(data[:3])
        if failing in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_synced", fill)
    with pytest.raises(OutputError, match=rf"{failing}.*No space left on device.*MiB free"):
        create_study(tmp_path / "quick", SPEC, TEXT)
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_cannot_start_is_taken_back_whole(tmp_path: Path) -> None:
    for _ in range(2):
        create_study(tmp_path / "quick", SPEC, TEXT)
        (tmp_path / "quick" / "wandb").mkdir()
        discard_study(tmp_path / "quick")
        assert list(tmp_path.iterdir()) == []
    discard_study(tmp_path / "quick")


def test_a_study_with_records_is_never_taken_back(tmp_path: Path) -> None:
    create_study(tmp_path, SPEC, TEXT)
    write_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    discard_study(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_taking_back_leaves_files_of_others(tmp_path: Path) -> None:
    create_study(tmp_path, SPEC, TEXT)
    (tmp_path / "notes.txt").touch()
    discard_study(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_study_that_holds_secrets_is_refused_without_repeating_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret-0123456789")
    spec = StudySpec(
        name="quick", task=CustomTaskSpec(name="mine:task", settings={"hub": {"api_key": "my-own-secret"}, "pad_token": "<pad>"})
    )
    with pytest.raises(SpecError) as caught:
        create_study(tmp_path, spec, "# planted-secret-0123456789\n")
    assert [problem.field for problem in caught.value.problems] == ["task.settings.hub.api_key", ""]
    assert "HF_TOKEN" in str(caught.value)
    assert "planted" not in str(caught.value)
    assert "my-own" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not the manifest of a fat_ray study"),
        ({"schema_version": "2.0"}, r"schema version 2\.0, this program reads up to 1\.2"),
        ({"schema_version": None}, "no schema version"),
        ({"name": "Not A Name"}, "not a valid manifest: name"),
        ({"created_at": "yesterday"}, "not a valid manifest: created_at"),
        ({"spec": {}}, r"study\.json is not a valid manifest: spec lacks task\.name, .*objectives"),
        ({"spec": as_json(SPEC) | {"budget": {"hours": 1}}}, r"study\.json is not a valid manifest: spec lacks budget\.trials$"),
        ({"spec": as_json(SPEC) | {"budget": 3}}, r"spec lacks budget\.trials$"),
    ],
)
def test_a_foreign_or_newer_manifest_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    create_study(tmp_path, SPEC, TEXT)
    found = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(found | change))
    with pytest.raises(RecordError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_of_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    made = create_study(tmp_path, SPEC, TEXT)
    found = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(found | {"schema_version": "1.9", "owner": "new field"}))
    assert read_manifest(tmp_path) == made.model_copy(update={"schema_version": "1.9"})


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\xff"])
def test_a_torn_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_bytes(text.encode("latin1"))
    with pytest.raises(RecordError, match=r"study\.json"):
        read_manifest(tmp_path)


def test_a_directory_without_a_study_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"holds no study: it has no study\.json"):
        read_manifest(tmp_path)


def test_arguments_that_name_a_place_or_a_secret_are_left_out() -> None:
    given = [
        "launch",
        "/home/someone/quick.yaml",
        "--address",
        "ray://head:10001",
        "--out=/data/out",
        "--trials",
        "3",
        "--out",
        "--x",
        "--y",
    ]
    assert safe_arguments(given) == ["launch", "quick.yaml", "--trials", "3", "--y"]
    assert safe_arguments(["--set", "task.settings.url=https://me:pw@host/x?token=abc&a=1"]) == [
        "--set",
        "task.settings.url=https://[redacted]@host/x?token=[redacted]&a=1",
    ]


def test_the_spec_in_the_manifest_is_the_resolved_one(tmp_path: Path) -> None:
    assert create_study(tmp_path, SPEC, TEXT).spec == as_json(SPEC)
