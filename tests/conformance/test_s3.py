"""Records in an object store: a study is read from S3, served by moto on loopback."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.fs import S3FileSystem

from fat_ray.analysis.compare import Options, compare
from fat_ray.analysis.status import read_status
from fat_ray.records.compact import compact
from fat_ray.records.place import place_of
from tests.support.studies import FakeRun, study_spec, write_study

moto = pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors")


@pytest.fixture(scope="module")
def query() -> Iterator[str]:
    """What makes an s3 URI one of the server."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    finally:
        server.stop()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("keys")
def test_a_study_in_a_bucket_is_read_as_a_local_one(tmp_path: Path, query: str) -> None:
    runs = [FakeRun(f"none-s{seed}", role="baseline", label="none", seed=seed, frozen=0, f1=0.6) for seed in (0, 1)]
    runs += [FakeRun(f"t0000-s{seed}", trial=0, seed=seed, f1=0.5 + 0.01 * seed) for seed in (0, 1)]
    study = write_study(tmp_path / "study", runs, spec=study_spec("stored", steps=8, seeds=[0, 1]), text="name: stored\n")
    saved = tmp_path / "compacted"
    shutil.copytree(study, saved)
    compact(saved)
    expected = compare([study], Options(margin=0.1))
    for name, directory in (("loose", study), ("compacted", saved)):
        uri = f"s3://bucket/{name}?{query}"
        place = place_of(uri)
        assert isinstance(place.filesystem, S3FileSystem)
        place.filesystem.create_dir("bucket")
        for path in directory.rglob("*"):
            if path.is_file():
                place.write(str(path.relative_to(directory)), path.read_bytes())
        found = compare([uri], Options(margin=0.1))
        assert found.runs.equals(expected.runs)
        assert found.settings.equals(expected.settings)
        assert found.studies[0].text == "name: stored\n"
        assert [trial.name for trial in read_status(uri).trials] == ["none", "t0000"]


@pytest.mark.usefixtures("keys")
def test_a_torn_object_is_named_and_everything_else_is_read(tmp_path: Path, query: str) -> None:
    runs = [FakeRun(f"t{trial:04d}-s0", trial=trial) for trial in range(2)]
    study = write_study(tmp_path / "study", runs, spec=study_spec("stored", steps=8))
    place = place_of(f"s3://bucket/torn?{query}")
    place.filesystem.create_dir("bucket")
    for path in study.rglob("*.*"):
        place.write(str(path.relative_to(study)), path.read_bytes()[: 100 if "steps/t0001" in str(path) else None])
    comparison = compare([place])
    assert comparison.runs["run"].to_list() == ["t0000-s0"]
    assert "Left out: t0001-s0. s3://bucket/torn/records/steps/t0001-s0/part-00000.parquet is not a whole" in comparison.damage[0]
