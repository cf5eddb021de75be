import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fat_ray
from fat_ray.errors import OutputError
from fat_ray.records.manifest import create_study, read_manifest
from fat_ray.records.metrics import AXIS
from fat_ray.records.mirror.access import resolve_mode
from fat_ray.records.mirror.content import artifact_name, run_config, run_id, schedule_rows, study_tables
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.records.mirror.picture import HEIGHT, WIDTH, schedule_grid, schedule_picture
from fat_ray.records.mirror.writer import Writer, _Live
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.reader import read_table
from fat_ray.spec.study import StudySpec, WandbSpec
from tests.support.runs import start, step, write_run

RUN = "t0003-s0"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    create_study(tmp_path, StudySpec(name="quick"), "name: quick\n")
    return tmp_path


@pytest.mark.timeout(20)
def test_a_disabled_mirror_writes_nothing_and_imports_no_wandb(study: Path) -> None:
    write_run(study)
    code = (
        "import sys; from fat_ray.records.mirror.driver import WandbMirror; from fat_ray.spec.study import WandbSpec; "
        f"mirror = WandbMirror({str(study)!r}, WandbSpec(mode='disabled')); mirror.check_writable(); "
        f"mirror.advance({RUN!r}); mirror.finish({RUN!r}); mirror.close(); print('wandb' in sys.modules)"
    )
    root = str(Path(fat_ray.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root})
    assert done.stdout.strip() == "False"
    assert not (study / "wandb").exists()


def test_a_place_that_cannot_be_written_is_found_before_the_study_starts(study: Path) -> None:
    (study / "wandb").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write in .*wandb: File exists"):
        WandbMirror(study, WandbSpec()).check_writable()


def test_checking_leaves_only_the_directory_and_the_environment_as_it_was(study: Path) -> None:
    before = dict(os.environ)
    WandbMirror(study, WandbSpec()).check_writable()
    assert list((study / "wandb").iterdir()) == []
    assert dict(os.environ) == before


class Silent:
    """Stands for the process: says what it is told to, and remembers what it was asked."""

    def __init__(self, *answers: dict[str, str]) -> None:
        self.asked: list[str] = []
        self.answers, self.heard_s, self.has_ended = list(answers), 0.0, False

    def __call__(self, *_: object) -> "Silent":
        return self

    def send(self, do: str, **details: object) -> None:
        self.asked.append(f"{do} {details.get('run', '')}".strip())

    def receive(self, timeout_s: float = 0.0) -> dict[str, str]:
        if not self.answers:
            raise TimeoutError
        return self.answers.pop(0)

    def end(self) -> None:
        self.has_ended = True


def mirror_with(child: Silent, study: Path, monkeypatch: pytest.MonkeyPatch) -> WandbMirror:
    monkeypatch.setattr("fat_ray.records.mirror.driver.Child", child)
    return WandbMirror(study, WandbSpec(mode="offline"), patience_s=0.0)


def test_whatever_fails_in_wandb_is_one_warning_without_secrets(
    study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret-0123456789")
    child = Silent({"said": "failed", "reason": "refused for planted-secret-0123456789"})
    mirror = mirror_with(child, study, monkeypatch)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            mirror.advance(RUN)
        mirror.finish(RUN)
        mirror.close()
    assert child.asked == [f"advance {RUN}"]
    assert child.has_ended
    assert [record.getMessage() for record in caplog.records] == [
        "W&B mirror off: refused for [redacted]. The records are complete without it."
    ]


def test_a_mirror_that_hangs_is_given_up_with_one_warning(
    study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child = Silent()
    mirror = mirror_with(child, study, monkeypatch)
    mirror.advance(RUN)
    mirror.close()
    mirror.close()
    assert child.asked == [f"advance {RUN}", f"finish {RUN}", "close"]
    assert child.has_ended
    assert [record.getMessage().partition(".")[0] for record in caplog.records] == ["W&B mirror off: W&B got nowhere for 0 s"]


def test_damaged_records_end_the_mirror_of_their_run_only(
    study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child = Silent({"said": "unreadable", "run": RUN, "reason": "part-00000.parquet is not a whole Parquet file"})
    mirror = mirror_with(child, study, monkeypatch)
    for run in (RUN, "t0004-s0", RUN):
        mirror.advance(run)
    assert child.asked == [f"advance {RUN}", "advance t0004-s0"]
    assert "not a whole Parquet file" in caplog.text


def test_links_are_told_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Silent({"said": "begun", "run": RUN, "url": "http://server/run"})
    mirror = mirror_with(child, study, monkeypatch)
    mirror.advance(RUN)
    assert mirror.new_links() == {RUN: "http://server/run"}
    assert mirror.new_links() == {}


@pytest.mark.parametrize(
    ("environment", "mode"),
    [({}, "offline"), ({"WANDB_API_KEY": "k" * 40}, "online"), ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "offline")],
)
def test_auto_is_online_where_there_is_a_key(environment: dict[str, str], mode: str, tmp_path: Path) -> None:
    assert resolve_mode("auto", {"NETRC": str(tmp_path / "none"), **environment}) == mode
    assert resolve_mode("disabled", environment) == "disabled"


def test_names_are_what_wandb_takes(study: Path) -> None:
    manifest = read_manifest(study)
    assert run_id(manifest, RUN) == f"quick-{RUN}-{manifest.launch}"
    long = run_id(manifest, "x" * 64)
    assert len(long) == 64
    assert long != run_id(manifest, "x" * 64 + "y")
    assert artifact_name("a b/c:é") == "a_b_c__"


def test_the_picture_turns_where_a_group_freezes(study: Path) -> None:
    write_run(study)
    grid = schedule_grid(read_table(study, "freezes", RUN), num_groups=4, num_steps=5)
    assert grid.tolist() == [[True] * 5, [True] * 5, [True, True, True, False, False], [True] * 5]
    picture = schedule_picture(grid)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert (picture[0, 0] == picture[-1, -1]).all()
    assert (picture[HEIGHT * 5 // 8, WIDTH - 1] != picture[0, 0]).all()


def test_the_front_of_a_study_is_a_table_of_its_own() -> None:
    ended = {"state": "completed", "seeds_done": 1, "last": 0.5, "best": 0.5, "reason": ""}
    trials = [
        {"trial": name, "setting": {"freeze.every": every}, "at_budget": {"val/f1": f1}, **ended}
        for name, every, f1 in [("t0", 4, 0.5), ("t1", 8, 0.6)]
    ]
    tables = study_tables({"objectives": [{"metric": "val/f1"}], "trials": trials, "front": ["t1"]})
    columns, rows = tables["study/pareto"]
    assert columns[:4] == ["trial", "val/f1", "freeze.every", "state"]
    assert [row[:4] for row in rows] == [["t1", 0.6, "8", "completed"]]
    assert len(tables["study/trials"][1]) == 2


def test_the_configuration_nests_parameters_and_leaves_nothing_out(study: Path) -> None:
    config = run_config(start(), read_manifest(study))
    assert config["params"] == {"freeze": {"threshold": -0.25, "every": 8}, "drift": {"score": "mean"}, "train": {"clip_norm": None}}
    assert config["spec"] == start().spec
    assert config["environment"] == start().environment
    assert (config["study"], config["run"], config["trial"], config["seed"], config["role"], config["label"]) == (
        "quick",
        RUN,
        3,
        0,
        "search",
        "",
    )
    assert (config["total_elements"], config["num_groups"]) == (481, 4)


def test_the_schedule_names_what_froze(study: Path) -> None:
    write_run(study)
    assert schedule_rows(study, RUN, start()) == [[2, 1, "norm", "norm", "BatchNorm2d", 32]]


class Handle:
    """Remembers the steps that were logged."""

    url = None

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, row: dict[str, object]) -> None:
        step = row[AXIS]
        assert isinstance(step, int)
        self.steps.append(step)


def test_steps_that_are_done_again_after_an_interruption_are_shown_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle()
    monkeypatch.setattr(Writer, "_open", lambda self, run: _Live(handle, start(run)))
    mirror = Writer(study, WandbSpec(mode="offline"), study)
    sink = ParquetSink(study, "t0009-s0")
    for event in [start("t0009-s0"), step(0), step(1)]:
        sink.emit(event)
    sink.flush()
    position = sink.position()
    for event in [step(2), step(3)]:
        sink.emit(event)
    sink.flush()
    mirror.advance("t0009-s0")
    again = ParquetSink(study, "t0009-s0")
    again.rewind(position)
    for event in [step(2), step(3), step(4)]:
        again.emit(event)
    again.flush()
    mirror.advance("t0009-s0")
    assert handle.steps == [0, 1, 2, 3, 4]
