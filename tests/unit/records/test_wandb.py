import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fat_ray
from fat_ray.errors import OutputError
from fat_ray.records.manifest import create_study
from fat_ray.records.metrics import AXIS
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.wandb import WandbMirror, _Live, run_config, schedule_rows
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
        "import sys; from fat_ray.records.wandb import WandbMirror; from fat_ray.spec.study import WandbSpec; "
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


def test_whatever_fails_in_wandb_is_one_warning_without_secrets(
    study: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret-0123456789")
    calls = []

    def fail(self: WandbMirror, run: str) -> None:
        calls.append(run)
        raise ConnectionError("refused for planted-secret-0123456789\nand advice")

    monkeypatch.setattr(WandbMirror, "_open", fail)
    write_run(study)
    mirror = WandbMirror(study, WandbSpec())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            mirror.advance(RUN)
        mirror.finish(RUN)
        mirror.close()
    assert calls == [RUN]
    assert [record.getMessage() for record in caplog.records] == [
        f"W&B mirror off since run {RUN}: refused for [redacted]. The records are complete without it."
    ]


def test_torn_records_stop_the_mirror_only(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(study)
    (study / "records" / "runs" / RUN / "part-00000.parquet").write_bytes(b"half")
    WandbMirror(study, WandbSpec()).advance(RUN)
    assert "not a whole Parquet file" in caplog.text


def test_an_interrupt_is_not_swallowed(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: WandbMirror, run: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WandbMirror, "_open", interrupt)
    write_run(study)
    with pytest.raises(KeyboardInterrupt):
        WandbMirror(study, WandbSpec()).advance(RUN)


def test_a_run_that_has_not_started_is_left_alone(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WandbMirror, "_open", lambda self, run: pytest.fail("opened"))
    mirror = WandbMirror(study, WandbSpec())
    mirror.advance(RUN)
    mirror.finish(RUN)


def test_the_configuration_nests_parameters_and_leaves_nothing_out() -> None:
    config = run_config(start())
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

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, row: dict[str, object]) -> None:
        step = row[AXIS]
        assert isinstance(step, int)
        self.steps.append(step)


def test_steps_that_are_done_again_after_an_interruption_are_shown_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle()
    monkeypatch.setattr(WandbMirror, "_open", lambda self, run: _Live(handle, start(run)))
    mirror = WandbMirror(study, WandbSpec())
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
