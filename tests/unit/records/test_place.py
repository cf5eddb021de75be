from pathlib import Path

import pytest

from fat_ray.errors import InputError, OutputError, RecordError
from fat_ray.records.manifest import create_study, read_manifest
from fat_ray.records.place import place_of
from fat_ray.spec.study import StudySpec

pytestmark = pytest.mark.timeout(10)  # loads fsspec


def test_a_path_is_a_place_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_bytes(b"x")
    for given in (tmp_path, str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}", f"file://{tmp_path}/"):
        place = place_of(given)
        assert (place.name, place.local) == (str(tmp_path), tmp_path)
        assert place.read("a/b.txt") == b"x"
        assert [Path(info.path) for info in place.files("a")] == [tmp_path / "a" / "b.txt"]
        assert place.files("nowhere") == []
        with pytest.raises(FileNotFoundError):
            place.read("a/c.txt")


def test_a_uri_is_a_place_elsewhere() -> None:
    place = place_of("fsspec+memory://bucket/place/")
    assert (place.name, place.local) == ("fsspec+memory://bucket/place", None)
    assert place.parent.name == "fsspec+memory://bucket"
    place.write("a/b.txt", b"x")
    place.write("a/b.txt", b"yz")
    assert place.read("a/b.txt") == b"yz"
    assert [place.shown(info.path) for info in place.files("", recursive=True)] == ["fsspec+memory://bucket/place/a/b.txt"]
    assert place_of(place) is place


@pytest.mark.parametrize("given", ["bogus://bucket/x", "fsspec+nosuch://x"])
def test_a_uri_that_no_file_system_goes_with_is_bad_input(given: str) -> None:
    with pytest.raises(InputError, match="no file system goes with this URI") as caught:
        place_of(given)
    assert given in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_of_a_uri_are_not_shown() -> None:
    place = place_of("s3://user:s3cr3t-k3y@bucket/x/?region=eu-central-1")
    assert (place.name, place.root, place.options) == ("s3://[redacted]@bucket/x", "bucket/x", "?region=eu-central-1")
    assert place.shown("bucket/x/records") == "s3://[redacted]@bucket/x/records"
    assert (place.parent.name, place.parent.options) == ("s3://[redacted]@bucket", "?region=eu-central-1")
    with pytest.raises(InputError) as caught:
        place_of("bogus://user:s3cr3t-k3y@bucket/x")
    assert "s3cr3t" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file/report\.html cannot be written"):
        place_of(tmp_path / "file").write("report.html", b"x")


def test_manifests_are_read_from_any_place(tmp_path: Path) -> None:
    written = create_study(tmp_path / "small", StudySpec(name="small"), "name: small\n")
    elsewhere = place_of("fsspec+memory://manifests/small")
    elsewhere.write("study.json", (tmp_path / "small" / "study.json").read_bytes())
    assert read_manifest("fsspec+memory://manifests/small") == read_manifest(f"file://{tmp_path}/small") == written
    elsewhere.write("study.json", b"{")
    with pytest.raises(RecordError, match=r"fsspec\+memory://manifests/small/study\.json cannot be read"):
        read_manifest(elsewhere)
    with pytest.raises(RecordError, match=r"fsspec\+memory://manifests/other holds no study"):
        read_manifest("fsspec+memory://manifests/other")
