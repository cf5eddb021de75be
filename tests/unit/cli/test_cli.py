import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from fat_ray.cli import app as shared
from fat_ray.cli import launching
from fat_ray.cli.main import app
from fat_ray.cli.options import WandbMode
from fat_ray.errors import DivergedError, InputError, Interrupted, RunFailedError
from fat_ray.records.manifest import create_study
from fat_ray.spec.study import StudySpec
from fat_ray.study.doctor import Check
from fat_ray.study.launch import StudyOutcome
from fat_ray.study.ledger import Close

COMMANDS = [
    "launch",
    "run",
    "resume",
    "export",
    "compare",
    "compact",
    "replay",
    "rerun",
    "report",
    "plot",
    "status",
    "doctor",
    "schema",
    "submit",
]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text("name: small\n")
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    create_study(tmp_path / "small", StudySpec(name="small"), "name: small\n")
    return tmp_path / "small"


def test_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.split("Commands:\n")[1].splitlines()] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_ends_with_an_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    example = result.stdout.rstrip().rpartition("Example:\n")[2]
    assert example.startswith(f"    fat-ray {command}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch"],
        ["launch", "x.yaml", "--trials", "0"],
        ["launch", "x.yaml", "--trials", "many"],
        ["launch", "x.yaml", "--wandb", "maybe"],
        ["run", "x.yaml", "--workers", "0"],
        ["run", "x.yaml", "--seed", "-1"],
        ["resume"],
        ["export", "x"],
        ["compare"],
        ["compare", "x", "--format", "xml"],
        ["replay"],
        ["replay", "x", "--limit", "-1"],
        ["rerun", "x"],
        ["no-such-command"],
        ["doctor", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


def shows_one_message(result: Result) -> bool:
    return result.stdout == "" and result.stderr.startswith("fat-ray: ") and "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["launch", "run"])
@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("name: small\nfreez: {}\n", [], "freeze"),
        ("name: Small\n", [], "name"),
        ("name: small\n", ["train.steps=many"], "train.steps"),
        ("name: small\n", ["trian.steps=4"], "did you mean train"),
        ("name: small\n", ["train.steps"], "field=value"),
        ("", [], "is empty"),
    ],
)
def test_bad_study_ends_with_2_and_one_message(command: str, text: str, settings: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    result = invoke(command, path, "--out", tmp_path / "out", *(f"--set={setting}" for setting in settings))
    assert result.exit_code == 2
    assert shows_one_message(result)
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["launch", "run"])
def test_missing_study_file_ends_with_2(command: str, tmp_path: Path) -> None:
    result = invoke(command, tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert shows_one_message(result)
    assert "none.yaml" in result.stderr


@pytest.mark.parametrize("command", ["resume", "compare", "rerun", "report", "plot", "status"])
def test_directory_without_study_ends_with_2(command: str, tmp_path: Path) -> None:
    result = invoke(command, tmp_path / "out", *(["run-s0"] if command == "rerun" else []))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "out holds no study" in result.stderr


@pytest.mark.parametrize(("error", "exit_code"), [(InputError("give more"), 2), (DivergedError("loss is nan"), 1)])
def test_own_errors_become_their_message(error: Exception, exit_code: int, study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = raising(error, study_file, monkeypatch)
    assert (result.exit_code, result.stderr) == (exit_code, f"fat-ray: {error}\n")


def raising(error: BaseException, study_file: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    """Runs a command whose first step raises."""

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(launching, "_load", load)
    return invoke(*options, "run", study_file)


def test_interrupt_ends_with_130(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = raising(KeyboardInterrupt(), study_file, monkeypatch)
    assert result.exit_code == 130
    assert shows_one_message(result)


def test_unexpected_error_becomes_one_line_and_a_log(study_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = raising(ZeroDivisionError("no\nway"), study_file, monkeypatch)
    assert result.exit_code == 1
    (log,) = tmp_path.glob("fat-ray-*.log")
    assert result.stderr == f"fat-ray: unexpected ZeroDivisionError: no way; the traceback lies in {log}\n"
    assert "Traceback" in log.read_text()
    assert "in load" in log.read_text()


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_no_secret_of_an_error_is_shown_or_logged(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str]
) -> None:
    monkeypatch.setattr(shared.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MY_API_TOKEN", "planted-0123456789")
    result = raising(ZeroDivisionError("by planted-0123456789"), study_file, monkeypatch, *options)
    shown = result.output + "".join(log.read_text() for log in tmp_path.glob("fat-ray-*.log"))
    assert "ZeroDivisionError: by [redacted]" in shown
    assert "planted" not in shown


def test_debug_shows_the_traceback(study_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = raising(ZeroDivisionError("no way"), study_file, monkeypatch, "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert list(tmp_path.glob("*.log")) == []


def test_log_of_a_study_lies_in_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(shared, "SESSION", shared.Session(directory=tmp_path))
    log = shared._write_log()
    assert log is not None
    assert log.parent == tmp_path / "logs"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("command", ["schema", "status", "compare"])
def test_a_full_stdout_is_no_defect(command: str, code: int, study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    echo = typer.echo
    monkeypatch.setattr(typer, "echo", lambda text, *, err=False: echo(text, err=True) if err else refuse())
    if command == "status":
        monkeypatch.setattr(Console, "print", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = invoke(command, *([] if command == "schema" else [study]))
    assert (result.exit_code, result.stderr) == (1, f"fat-ray: cannot write to stdout: {os.strerror(code)}\n")
    assert list(tmp_path.glob("*.log")) == []


@pytest.mark.timeout(30)  # starts a Python
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_behind_stdout_ends_with_1_and_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run([sys.executable, "-m", "fat_ray", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "fat-ray: cannot write to stdout: No space left on device\n")


def test_a_run_that_failed_names_its_logs(study_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RunFailedError("worker 1 was killed")

    monkeypatch.setattr("fat_ray.study.single.run_once", fail)
    result = invoke("run", study_file, "--out", tmp_path)
    logs = tmp_path / "small-run-s0" / "logs"
    assert (result.exit_code, result.stderr) == (1, f"fat-ray: worker 1 was killed; tracebacks lie in {logs}\n")


def test_options_are_short_for_settings(study_file: Path) -> None:
    loaded = launching._load(study_file, ["budget.trials=3", "train.steps=7"], **{"budget.trials": 5, "wandb.mode": WandbMode.DISABLED})
    assert (loaded.spec.budget.trials, loaded.spec.train.steps, loaded.spec.wandb.mode) == (5, 7, "disabled")


def test_trials_without_a_search_are_refused(study_file: Path, tmp_path: Path) -> None:
    result = invoke("launch", study_file, "--trials", "5", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"--trials 5: {study_file} searches nothing" in result.stderr
    assert shows_one_message(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_a_search_that_ran_no_trial_ends_with_1(
    options: tuple[str, ...], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = StudyOutcome(tmp_path, (), None, ("a note",), "the search ran no trial: all 3 suggested settings go wrong")
    monkeypatch.setattr("fat_ray.study.launch.launch", lambda *_, **__: outcome)
    result = invoke("launch", study_file, *options)
    assert result.exit_code == 1
    said = "fat-ray: the search ran no trial: all 3 suggested settings go wrong\n"
    assert result.stderr == (f"warning: a note\n{said}" if options else said)  # otherwise the console has shown it


def test_status_as_json(study: Path) -> None:
    result = invoke("status", study, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["study"] == "small"


@pytest.mark.parametrize(("verdict", "exit_code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_fails_only_on_what_is_required(verdict: str, exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fat_ray.study.doctor.examine", lambda _: [Check("a", "ok", "fine"), Check("b", verdict, "so", "mend")])
    result = invoke("doctor", "--json")
    assert result.exit_code == exit_code
    assert [check["verdict"] for check in json.loads(result.stdout)] == ["ok", verdict]


def test_schema_is_that_of_a_study() -> None:
    schema = json.loads(invoke("schema").stdout)
    assert {"name", "search", "freeze", "budget"} <= set(schema["properties"])


def test_version() -> None:
    assert invoke("--version").stdout.strip().count(".") == 2


@pytest.mark.parametrize(("kind", "option"), [("study", ["--workers", "2"]), ("study", ["--ray"]), ("run", ["--address", "host:6379"])])
def test_options_that_do_not_fit_what_is_resumed_are_refused(study: Path, kind: str, option: list[str]) -> None:
    manifest = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**manifest, "kind": kind}))
    result = invoke("resume", study, *option)
    assert result.exit_code == 2
    assert shows_one_message(result)
    assert f"{option[0]} is not for a {'single run' if kind == 'run' else 'study'}" in result.stderr


def test_a_complete_study_is_said_to_be_complete(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fat_ray.study.launch.resume", lambda *_, **__: None)
    result = invoke("resume", study)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "is complete; there is nothing to do" in result.stderr


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_study_that_a_signal_ended_says_how_to_go_on(study: Path, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int) -> None:
    outcome = StudyOutcome(study, (), Close.INTERRUPTED, (), "", number)
    monkeypatch.setattr("fat_ray.study.launch.resume", lambda *_, **__: outcome)
    result = invoke("resume", study)
    assert result.exit_code == exit_code
    assert result.stderr == f"fat-ray: stopped on request; go on with: fat-ray resume {study}\n"


@pytest.mark.parametrize("at_once", [False, True])
def test_an_interruption_ends_with_its_signal(study: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    def resume(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGTERM, at_once=at_once)

    monkeypatch.setattr("fat_ray.study.launch.resume", resume)
    result = invoke("resume", study)
    assert result.exit_code == 143
    assert result.stderr == f"fat-ray: stopped; go on with: fat-ray resume {study}\n"


@pytest.mark.cpu_limit(10)  # imports torch
def test_export_names_what_is_missing(study: Path, tmp_path: Path) -> None:
    result = invoke("export", study, "--out", tmp_path / "model.safetensors")
    assert result.exit_code == 2
    assert shows_one_message(result)
    assert "small holds no checkpoint" in result.stderr
