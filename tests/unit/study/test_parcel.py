"""What of a study is sent to a cluster."""

from pathlib import Path

import pytest

from fat_ray.errors import InputError, SpecError
from fat_ray.spec.load import load_study
from fat_ray.study import parcel
from fat_ray.study.parcel import pack


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present directory, with modules in it."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def packed(here: Path, text: str, *overrides: str) -> tuple[list[str], list[str]]:
    """Names of the modules, and all files that were packed."""
    (here / "mine.yaml").write_text(f"name: mine\n{text}")
    target = here.parent / "parcel"
    target.mkdir()
    names = pack(load_study(here / "mine.yaml", overrides), overrides, target)
    assert (target / "study.yaml").read_text() == f"name: mine\n{text}"
    return names, sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


def test_a_study_without_code_of_ones_own_is_sent_alone(here: Path) -> None:
    (here / ".env").write_text("TOKEN=x")
    (here / "large.parquet").write_bytes(bytes(1000))
    assert packed(here, "") == ([], ["study.yaml"])


def test_a_module_goes_with_what_it_imports_from_beside_it(here: Path) -> None:
    (here / "spirals.py").write_text("import json, numpy\nfrom fat_ray.tasks.base import Task\n\ndef make():\n    import helper.deep\n")
    (here / "helper").mkdir()
    (here / "helper" / "__init__.py").write_text("import third")
    (here / "helper" / "deep.py").write_text("from . import x")
    (here / "third.py").write_text("not python at all")
    (here / "unrelated.py").touch()
    names, files = packed(here, "task: {name: 'spirals:make'}\n")
    assert names == ["helper", "spirals.py", "third.py"]
    assert files == ["helper/__init__.py", "helper/deep.py", "spirals.py", "study.yaml", "third.py"]


def test_of_a_package_no_hidden_file_no_link_and_no_cache_is_sent(here: Path, tmp_path: Path) -> None:
    (here / "own" / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "weights.bin", ".secret", "__pycache__/x.pyc"):
        (here / "own" / name).touch()
    (tmp_path / "outside").touch()
    (here / "own" / "link").symlink_to(tmp_path / "outside")
    _, files = packed(here, "freeze: {policy: 'own.rules:policy'}\n")
    assert files == ["own/__init__.py", "own/weights.bin", "study.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "freeze: {policy: 'own:policy'}\n",
        "baselines: [{name: mine, policy: 'own:policy'}]\n",
        "search: {freeze.policy: {type: categorical, choices: [none, 'own:policy']}}\n",
    ],
)
def test_code_is_found_wherever_a_study_may_name_it(here: Path, text: str) -> None:
    (here / "own.py").touch()
    assert packed(here, text)[0] == ["own.py"]


def test_code_of_fat_ray_and_of_installed_packages_is_not_sent(here: Path) -> None:
    assert packed(here, "task: {name: 'numpy.random:default_rng'}\nfreeze: {policy: 'fat_ray.freeze.fixed:Never'}\n")[0] == []


@pytest.mark.parametrize("module", ["nowhere", "json"])
def test_a_module_that_is_not_here_is_named(here: Path, module: str) -> None:
    with pytest.raises(InputError, match=rf"task.name = {module}:make: there is no module {module} in .*here or on PYTHONPATH"):
        packed(here, f"task: {{name: '{module}:make'}}\n")


def test_data_of_this_machine_is_refused_and_that_of_the_cluster_is_not(here: Path) -> None:
    with pytest.raises(InputError, match=r"task.data = .*/here/mine.parquet: data is not sent; .* absolute path"):
        packed(here, "task: {name: crack_segmentation, data: mine.parquet}\n")
    (here.parent / "parcel").rmdir()
    assert packed(here, "task: {name: crack_segmentation}\n", "task.data=/mnt/shared/mine.parquet")[1] == ["study.yaml"]


def test_a_secret_is_not_sent(here: Path) -> None:
    with pytest.raises(SpecError, match="secret"):
        packed(here, "task: {name: 'own:make', settings: {api_key: 'abcdefghijklmnopqrstuvwxyz0123456789'}}\n")
    assert list((here.parent / "parcel").iterdir()) == []


def test_too_much_is_refused_with_the_largest_part(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "MAX_BYTES", 2**20)
    (here / "own").mkdir()
    (here / "own" / "__init__.py").touch()
    (here / "own" / "data.bin").write_bytes(bytes(3 * 2**20))
    with pytest.raises(InputError, match=r"own has 3.0 MiB, at most 1.0 MiB are sent"):
        packed(here, "task: {name: 'own:make'}\n")
