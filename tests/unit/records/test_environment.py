import getpass
import json
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fat_ray
from fat_ray.records import environment
from fat_ray.records.environment import capture, git_state


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "--no-verify", "-m", "x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_versions_come_from_what_is_installed_and_the_rest_is_as_given() -> None:
    found = capture(world_size=2, device="cpu")
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["pyarrow"] == metadata.version("pyarrow")
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["fat_ray"] == fat_ray.__version__
    assert set(found["versions"]) == {"python", "fat_ray", "torch", "ray", "optuna", "numpy", "pyarrow", "wandb"}
    assert (found["world_size"], found["device"], found["cpu_count"]) == (2, "cpu", os.cpu_count())
    assert json.loads(json.dumps(found)) == found


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PACKAGES", ("no-such-package-here",))
    assert capture(world_size=1, device="cpu")["versions"]["no-such-package-here"] is None


def test_nothing_names_the_machine_the_user_or_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret-0123456789")
    text = json.dumps({key: value for key, value in capture(world_size=1, device="cpu").items() if key != "platform"})
    for private in ("planted", socket.gethostname(), str(Path.home()), getpass.getuser(), str(Path.cwd())):
        assert private not in text


@pytest.mark.timeout(20)
def test_capturing_imports_no_heavy_package() -> None:
    code = (
        "import sys; from fat_ray.records.environment import capture; capture(world_size=1, device='cpu'); "
        "print([name for name in ('torch', 'ray', 'optuna', 'numpy', 'pyarrow', 'wandb') if name in sys.modules])"
    )
    root = str(Path(fat_ray.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root})
    assert done.stdout.strip() == "[]"


def test_the_commit_is_that_of_the_working_directory_and_changes_make_it_dirty(repository: Path) -> None:
    clean = git_state()
    assert len(clean["git_commit"]) == 40
    assert clean["git_dirty"] is False
    (repository / "out").write_text("results are not changes")
    assert git_state() == clean
    (repository / "a").write_text("2")
    assert git_state() == {**clean, "git_dirty": True}


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_state() == {"git_commit": None, "git_dirty": None}


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert git_state() == {"git_commit": None, "git_dirty": None}
