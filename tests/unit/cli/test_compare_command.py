"""The commands compare and compact: their options end up where they belong, and what is wrong with them is said."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats  # noqa: F401 - now, not within the CPU limit of the first test that compares seeds
from typer.testing import CliRunner, Result

from fat_ray.cli.main import app
from fat_ray.events import Status
from tests.support.studies import FakeRun, study_spec, write_study

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [
        replace(run, run=f"{run.run}-s{seed}", seed=seed, f1=run.f1 + 0.01 * (seed * 3 % 4))
        for run in (
            FakeRun("none", role="baseline", label="none", frozen=0, f1=0.6),
            FakeRun("t0000", trial=0, f1=0.59, frozen=0.9, params={"freeze.threshold": -0.5, "freeze.every": 2}),
        )
        for seed in range(6)
    ]
    runs.append(FakeRun("t0001-s0", trial=1, status=Status.PRUNED, steps=4, params={"freeze.threshold": 0.25, "freeze.every": 2}))
    spec = study_spec("small", steps=8, seeds=list(range(6)), freeze={"warmup_steps": 2})
    return write_study(tmp_path_factory.mktemp("cli") / "small", runs, spec=spec)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_the_table_ends_with_what_may_be_concluded(study: Path) -> None:
    result = invoke("compare", study, "--margin", "0.02", "--metric", "test/f1")
    assert result.exit_code == 0
    assert result.stderr == ""
    said = " ".join(result.stdout.split())
    assert "trial 0: worse than full fine-tuning in test F1 (p ≤ 0.05 after Holm's correction)." in said
    assert "trial 0 is within 0.02 test F1 of full fine-tuning at" in said
    assert "less compute (FLOPs) (difference −0.010" in said
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_options_choose_order_and_cut(study: Path) -> None:
    result = invoke(
        "compare",
        study,
        "--where",
        "freeze.threshold < 0",
        "--status",
        "completed",
        "--sort",
        "seed:desc",
        "--rows",
        "runs",
        "--limit",
        "2",
    )
    assert result.exit_code == 0
    rows = [line.split()[2] for line in result.stdout.splitlines() if "completed  " in line]
    assert sorted(rows) == ["none-s5", "t0000-s5"]
    assert "and 10 more rows" in result.stdout


def test_every_format_is_written(study: Path) -> None:
    assert len(list(csv.DictReader(io.StringIO(invoke("compare", study, "--format", "csv").stdout)))) == 14
    assert len(list(csv.DictReader(io.StringIO(invoke("compare", study, "--format", "csv", "--rows", "settings").stdout)))) == 3
    assert invoke("compare", study, "--format", "markdown").stdout.startswith("## Settings: mean ± sample standard deviation")
    assert invoke("compare", study, "--format", "latex").stdout.count(r"\begin{tabular}") == 3
    document = json.loads(invoke("compare", study, "--format", "json", "--baseline", "trial 0").stdout)
    assert document["statistics"]["baseline"] == "trial 0"
    assert document["search"] == []


@pytest.mark.cpu_limit(4)  # imports Optuna
def test_search_adds_what_the_search_says(study: Path) -> None:
    (insight,) = json.loads(invoke("compare", study, "--search", "--format", "json").stdout)["search"]
    assert (insight["study"], insight["trials"], insight["front"]) == ("small", 1, 2)
    assert 0 < insight["hypervolume"] <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "test/f9"], "fat-ray: --metric test/f9: no run has recorded it"),
        (["--baseline", "half"], "fat-ray: --baseline half: no study has a setting of this name"),
        (["--where", "x"], "fat-ray: --where x: must be field == value"),
        (["--sort", "x:up"], "fat-ray: --sort x:up: must be a field"),
        (["--status", "done, gone]"], "fat-ray: --where status in"),
    ],
)
def test_wrong_options_end_with_2_and_one_message(study: Path, arguments: list[str], said: str) -> None:
    result = invoke("compare", study, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(said)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("bogus://bucket/study", "fat-ray: bogus://bucket/study: no file system goes with this URI"),
        ("{study}/t0042-s0", "has no run t0042-s0; it has none-s0"),
        ("fsspec+memory://nothing/there", "fat-ray: fsspec+memory://nothing/there holds no study"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "status", "report"])
def test_places_that_hold_nothing_are_named(study: Path, place: str, said: str, command: str) -> None:
    result = invoke(command, place.format(study=study))
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert said in result.stderr


def test_what_is_damaged_is_said_beside_the_comparison_of_the_rest(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small"
    assert invoke("compact", copy).exit_code == 2
    shutil.copytree(study, copy)
    torn = copy / "records" / "evals" / "t0000-s3" / "part-00000.parquet"
    torn.write_bytes(b"half")
    for command in (["compare", copy, "--format", "json"], ["status", copy]):
        result = invoke(*command)
        assert result.exit_code == 0
        assert "t0000" in result.stdout
        assert str(torn) in "".join(result.stdout.split())
    assert f"note: Left out: t0000-s3. {torn} is not a whole Parquet file" in invoke("compare", copy).stderr


def test_compact_tells_what_it_did_and_what_it_left(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small"
    shutil.copytree(study, copy)
    torn = copy / "records" / "evals" / "t0000-s3" / "part-00000.parquet"
    torn.write_bytes(b"half")
    before = invoke("compare", copy, "--format", "json").stdout
    result = invoke("compact", copy)
    assert result.exit_code == 0
    assert result.stdout.startswith("12 runs gathered: ")
    assert f"note: t0000-s3 stays as it is: {torn} is not a whole Parquet file" in result.stderr
    assert invoke("compare", copy, "--format", "json").stdout == before
    assert invoke("compact", copy).stdout.startswith("0 runs gathered: ")
