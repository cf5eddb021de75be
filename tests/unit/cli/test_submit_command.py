"""The command `submit`, with a cluster that only pretends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fat_ray.cli.main import app
from fat_ray.errors import ResourceError
from fat_ray.study import submit as jobs
from fat_ray.study.submit import JobEnd

URL = "http://127.0.0.1:8265"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked of the cluster, which takes everything."""
    found: list[tuple[Any, ...]] = []

    def submit(_: object, loaded: Any, overrides: list[str], out: str, *, resume: bool) -> tuple[str, list[str]]:
        found.append((loaded.spec.train.steps, overrides, out, resume))
        return "mine-1", ["own.py"]

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setattr(jobs, "connect", lambda address: (found.append((address,)), ["not encrypted"]))
    monkeypatch.setattr(jobs, "submit", submit)
    return found


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\noutput: /mnt/shared\n")
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["submit", *map(str, arguments)])


def ending(exit_code: int, message: str = "") -> Callable[..., JobEnd]:
    def follow(_: object, job: str, write: Callable[[str], None]) -> JobEnd:
        write(f"output of {job}\n")
        return JobEnd(exit_code, message)

    return follow


def test_a_study_is_sent_and_followed(asked: list[Any], study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "follow", ending(0))
    result = invoke(study, "--address", URL, "--out", "/mnt/other", "--set", "train.steps=7", "--trials", "3", "--wandb", "disabled")
    assert (result.exit_code, result.stdout) == (0, "output of mine-1\n")
    assert asked == [(URL,), (7, ["train.steps=7", "budget.trials=3", "wandb.mode=disabled"], "/mnt/other", False)]
    assert "note: not encrypted" in result.stderr
    assert "sent with own.py" in result.stderr
    assert f"to see it again: fat-ray submit --follow mine-1 --address {URL}" in result.stderr


def test_without_out_the_directory_is_that_of_the_file(asked: list[Any], study: Path) -> None:
    result = invoke(study, "--address", URL, "--detach", "--resume")
    assert (result.exit_code, result.stdout) == (0, "mine-1\n")
    assert asked[1][2:] == ("/mnt/shared", True)


@pytest.mark.parametrize(
    ("code", "message", "said"), [(2, "", "the study ended with exit code 2"), (143, "the job was stopped", "stopped")]
)
def test_the_exit_code_is_that_of_the_study(asked: list[Any], monkeypatch: pytest.MonkeyPatch, code: int, message: str, said: str) -> None:
    monkeypatch.setattr(jobs, "follow", ending(code, message))
    result = invoke("--follow", "mine-1", "--address", URL)
    assert (result.exit_code, result.stdout) == (code, "output of mine-1\n")
    assert said in result.stderr.splitlines()[-1]
    assert asked == [(URL,)]


@pytest.mark.parametrize("arguments", [[], ["STUDY", "--follow", "mine-1"]])
def test_one_of_study_and_job_is_needed(asked: list[Any], study: Path, arguments: list[str]) -> None:
    result = invoke(*(str(study) if argument == "STUDY" else argument for argument in arguments))
    assert (result.exit_code, result.stderr) == (
        2,
        "fat-ray: give either STUDY.yaml, to send it, or --follow JOB, to follow one that was sent\n",
    )
    assert asked == []


def test_a_study_with_a_mistake_or_none_asks_nothing_of_the_cluster(asked: list[Any], study: Path, tmp_path: Path) -> None:
    for path, settings, said in ((tmp_path / "none.yaml", [], "cannot be read"), (study, ["--set", "trian.steps=4"], "did you mean train")):
        result = invoke(path, *settings, "--address", URL)
        assert (result.exit_code, said in result.stderr, "Traceback" in result.stderr) == (2, True, False)
    assert asked == []


def test_a_cluster_that_is_not_there_is_one_line(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> None:
        raise ResourceError(f"no cluster at {address}: Connection refused")

    monkeypatch.setattr(jobs, "connect", refuse)
    result = invoke(study, "--address", URL)
    assert (result.exit_code, result.stderr) == (2, f"fat-ray: no cluster at {URL}: Connection refused\n")
