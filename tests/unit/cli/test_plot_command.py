"""The command plot: which files it writes, and one line for everything that is wrong."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fat_ray.cli.main import app
from tests.support.studies import FakeRun, study_spec, write_study

pytestmark = pytest.mark.timeout(60)  # vl-convert starts a JavaScript engine


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [
        FakeRun("none-s0", role="baseline", label="none", frozen=0),
        FakeRun("t0000-s0", trial=0, f1=0.59, params={"freeze.threshold": -0.5, "freeze.every": 2}),
    ]
    return write_study(tmp_path_factory.mktemp("plot") / "small", runs, spec=study_spec("small", steps=6, freeze={"warmup_steps": 2}))


def plot(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["plot", *(str(argument) for argument in arguments)], env={"COLUMNS": "100"})


def test_one_figure_is_written_where_it_is_wanted(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "costs.svg"
    result = plot(study, "--figure", "tradeoff", "--out", out, "--width", "60mm", "--no-title")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    assert 'width="170.08pt"' in out.read_text()
    assert "against the mean number" not in out.read_text()


def test_all_figures_are_written_into_a_folder(study: Path, tmp_path: Path) -> None:
    result = plot(study, "--out", tmp_path / "figures", "--format", "svg")
    assert result.exit_code == 0
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert sorted(Path(line).name for line in result.stdout.splitlines()) == written
    assert {"tradeoff.svg", "schedule.svg", "step-time.svg", "cost-flops.svg"} <= set(written)
    assert "note: no seeds: Every setting was trained with one seed, so there is no interval." in result.stderr
    assert len(written) + len(result.stderr.splitlines()) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--figure", "treadoff", "--out", "x.png"],
            "fat-ray: --figure treadoff: there is no such figure; there are tradeoff, tradeoff-time, ",
        ),
        (["--figure", "active", "--out", "x.jpg"], "fat-ray: --out x.jpg: must end in .png, .svg or .pdf\n"),
        (["--figure", "active", "--out", "x"], "fat-ray: --out x: must end in .png, .svg or .pdf\n"),
        (["--out", "x.png"], "fat-ray: --out x.png: without --figure all figures are written, into a folder; name one with --figure\n"),
        (["--figure", "active", "--out", "x.png", "--format", "svg"], "fat-ray: --format svg: --out x.png says png\n"),
        (["--figure", "active", "--out", "x.png", "--width", "wide"], "fat-ray: --width wide: must be a length from 15mm"),
        (
            ["--figure", "seeds", "--out", "x.png"],
            "fat-ray: --figure seeds: nothing to draw. Every setting was trained with one seed, so there is no interval.\n",
        ),
        (["--figure", "drift", "--out", "x.png", "--run", "t9-s0"], "fat-ray: run = 't9-s0': the study has no such run; it has"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = plot(study, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_report_draws_the_run_that_is_asked_for(study: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(study), "--run", "none-s0"])
    assert (result.exit_code, result.stdout) == (0, f"{study / 'report.html'}\n")
    assert "When each group froze in none-s0" in (study / "report.html").read_text()
    result = CliRunner().invoke(app, ["report", str(study), "--run", "t9-s0"])
    assert result.exit_code == 2
    assert result.stderr.startswith("fat-ray: run = 't9-s0': the study has no such run")
