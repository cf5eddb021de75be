"""The README's own example is run as a reader would run it, and what it mentions exists."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fat_ray as fat_ray_package
from fat_ray.cli.main import app
from fat_ray.spec.study import StudySpec
from tests.support.studies import FakeRun, write_study

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, heading: str, says: str = "") -> str:
    """The only code block of a language under a heading, or the one in which something stands."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (text,) = [text for text in re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL) if says in text]
    return str(text)


def fat_ray(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fat_ray", *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.timeout(200)
def test_own_task_runs_learns_and_is_compared(tmp_path: Path) -> None:
    (tmp_path / "spirals.py").write_text(block("python", "Your own model and data"))
    (tmp_path / "spirals.yaml").write_text(block("yaml", "Your own model and data"))
    done = fat_ray(tmp_path, "run", "spirals.yaml", "--wandb", "disabled")
    assert done.returncode == 0, done.stderr
    compared = fat_ray(tmp_path, "compare", "out/spirals-run-s0", "--format", "json")
    (run,) = json.loads(compared.stdout)["runs"]
    assert run["status"] == "completed"
    assert run["val_last"] > 0.8
    assert 0 < run["mean_active_fraction"] <= 1


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the launch itself, in whose place records are written."""
    monkeypatch.chdir(ROOT)

    def launched(study: fat_ray_package.Study) -> None:
        study.directory = write_study(tmp_path / "study", [FakeRun("t0000-s0", trial=0, f1=0.5)])

    monkeypatch.setattr(fat_ray_package.Study, "launch", launched)
    names: dict[str, Any] = {}
    exec(block("python", "From Python"), names)
    assert names["study"].spec.budget.trials == 4
    assert len(names["study"].runs()) == 1


def test_a_plain_loop_freezes(capsys: pytest.CaptureFixture[str]) -> None:
    loop = block("python", "In your own training loop", "optimizer.step()")
    assert len(loop.splitlines()) <= 15
    exec(loop, {})
    active, total = [int(word) for word in capsys.readouterr().out.split() if word.isdecimal()]
    assert 0 < active < total


def test_the_hugging_face_trainer_freezes(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    from tests.support.fine_tuning import Classifier, examples

    arguments = TrainingArguments(str(tmp_path), max_steps=60, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no")
    names = {"model": Classifier(), "arguments": arguments, "examples": examples()}
    exec(block("python", "In your own training loop", "from transformers"), names)
    fractions = [line["freeze/active_fraction"] for line in names["trainer"].state.log_history if "freeze/active_fraction" in line]
    assert 0 < fractions[-1] < 1


def test_lightning_freezes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data import DataLoader

    from tests.support.fine_tuning import examples
    from tests.support.lightning import Module

    monkeypatch.chdir(tmp_path)  # it writes lightning_logs
    names = {"module": Module(), "loader": DataLoader(examples(), 8)}
    exec(block("python", "In your own training loop", "import lightning"), names)
    entries = names["freeze"].freezer.entries
    assert 0 < entries.active_elements < entries.elements.sum()


def test_every_command_is_described_and_exists() -> None:
    described = set(re.findall(r"^\| `fat-ray ([a-z]+)", README, flags=re.MULTILINE))
    assert described == {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


def test_every_key_of_a_study_is_described() -> None:
    table = README.partition("## A study file")[2].partition("Files are read strictly")[0]
    described = {key for line in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for key in re.findall(r"`([a-z]+)`", line)}
    assert set(StudySpec.model_fields) - described <= {"executor", "warm_start"}  # the latter is written under search
    assert described <= set(StudySpec.model_fields)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
