"""What the offline mirror leaves on disk, read back from W&B's own files and compared with the records it was made from."""

import json
import math
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import fat_ray
from fat_ray.records.manifest import create_study, read_manifest
from fat_ray.records.metrics import AXIS
from fat_ray.records.mirror.content import run_config
from fat_ray.records.reader import read_table, run_end, run_start, runs
from fat_ray.spec.study import StudySpec
from tests.support.runs import body, end, start
from tests.support.wandb_file import OfflineRun, offline_runs

pytestmark = pytest.mark.timeout(120)

SECRET = "planted0secret0" + "a1b2c3d4e5" * 3
DRIVER = """
import sys
from fat_ray.events import Status
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.spec.study import WandbSpec
from tests.support.runs import body, end, start

directory = sys.argv[1]
mirror = WandbMirror(directory, WandbSpec(mode="offline"))
mirror.check_writable()
sinks = {run: ParquetSink(directory, run) for run in ("t0003-s0", "t0004-s0", "t0005-s0")}
for run, sink in sinks.items():
    mirror.advance(run)  # not started
    sink.emit(start(run))
    for event in body()[:4]:
        sink.emit(event)
    sink.flush()
    mirror.advance(run)
for run, sink in sinks.items():
    for event in body()[4:]:
        sink.emit(event)
    sink.flush()
    mirror.advance(run)
    mirror.advance(run)  # nothing new
sinks["t0003-s0"].emit(end())
sinks["t0004-s0"].emit(end(Status.DIVERGED, "loss is nan", {"val/loss": float("nan")}))
for sink in sinks.values():
    sink.close()
mirror.finish("t0003-s0")
mirror.finish("t0003-s0")  # is finished
mirror.finish("t0004-s0")
mirror.close()  # t0005-s0 has no end: it was killed
"""


def run_driver(code: str, study: Path, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a driver process in which W&B finds no settings and no server but those given."""
    home.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    root = str(Path(fat_ray.__file__).parents[1])
    environment = {**clean, "PYTHONPATH": root, "HOME": str(home), "WANDB_BASE_URL": "http://127.0.0.1:9", **variables}
    command = [sys.executable, "-c", code, str(study)]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study mirrored by a driver process, with secrets in its environment and nothing else that it may write to."""
    place = tmp_path_factory.mktemp("wandb")
    create_study(place / "study", StudySpec(name="quick"), "name: quick\n")
    done = run_driver(DRIVER, place / "study", place / "home", WANDB_API_KEY=SECRET[:40], MY_SECRET_TOKEN=SECRET)
    assert done.returncode == 0, done.stderr
    (place / "output.txt").write_text(done.stdout + done.stderr)
    return place


@pytest.fixture(scope="module")
def offline(place: Path) -> dict[str, OfflineRun]:
    return offline_runs(place / "study")


def logged(found: OfflineRun, name: str) -> list[tuple[int, Any]]:
    """(step, value) of each time a metric was logged; NaN as such."""
    return [(row[AXIS], float(row[name]) if isinstance(row[name], str) else row[name]) for row in found.history if name in row]


def column(directory: Path, run: str, table: str, name: str, **only: Any) -> list[tuple[int, Any]]:
    rows = read_table(directory, table, run).to_pylist()
    return [(row["step"], row[name]) for row in rows if all(row[key] == value for key, value in only.items()) and row[name] is not None]


def test_there_is_one_run_per_run_of_the_study_identified_as_such(place: Path, offline: dict[str, OfflineRun]) -> None:
    launch = read_manifest(place / "study").launch
    assert sorted(offline) == runs(place / "study")
    for run, found in offline.items():
        assert found.run.run_id == f"quick-{run}-{launch}"
        assert (found.run.run_group, found.run.job_type, found.run.project) == ("quick", "search", "fat_ray")
        assert list(found.run.tags) == [start().spec["freeze"]["policy"]]


def test_the_configuration_is_complete_before_the_first_log(place: Path, offline: dict[str, OfflineRun]) -> None:
    for run, found in offline.items():
        config = {name: value for name, value in found.config.items() if name != "_wandb"}
        assert config == json.loads(json.dumps(run_config(run_start(place / "study", run), read_manifest(place / "study"))))
        assert "config" not in found.kinds[found.kinds.index("history") :]
        assert found.kinds.index("run") < found.kinds.index("history")


COSTS = ("flops", "flops_forward", "flops_input_gradient", "flops_weight_gradient", "comm_bytes", "optimizer_bytes", "peak_memory_bytes")


def test_every_value_of_the_records_is_logged_once_and_nothing_else(place: Path, offline: dict[str, OfflineRun]) -> None:
    study = place / "study"
    for run, found in offline.items():
        total = run_start(study, run).total_elements
        active = column(study, run, "steps", "active_elements")
        seconds = column(study, run, "steps", "step_s")
        expected = {
            **{f"train/{name}": column(study, run, "steps", name) for name in ("loss", "lr", "grad_norm")},
            **{f"perf/{name}": column(study, run, "steps", name) for name in ("step_s", *COSTS)},
            "perf/samples_per_s": [(step, 8 / value) for step, value in seconds],
            "freeze/active_elements": active,
            "freeze/active_fraction": [(step, value / total) for step, value in active],
            **{f"val/{name}": column(study, run, "evals", "value", split="val", metric=name) for name in ("f1", "loss")},
            "val/eval_s": [(0, 0.5), (5, 0.5)],
            "zero_shot_blur/f1": [(5, 0.375)],
            "zero_shot_blur/eval_s": [(5, 0.25)],
            **{
                f"freeze/{name}": column(study, run, "events", name)
                for name in ("threshold", "frozen_groups", "frozen_elements", "active_groups", "decide_s")
            },
            "drift/min": [(2, 0.1)],
            "drift/max": [(2, 0.5)],
            "drift/median": [(2, 0.3)],
            "drift/mean": [(2, pytest.approx(0.3, rel=1e-15))],
        }
        for name, values in expected.items():
            assert values, name
            assert same(logged(found, name), values), (run, name)
        structured = ("drift/histogram.", "freeze/schedule.", "freeze/picture.")
        names = {name for row in found.history for name in row if not name.startswith(("_", *structured))}
        assert names - {AXIS} == set(expected)


def same(found: list[tuple[int, Any]], expected: list[tuple[int, Any]]) -> bool:
    nan_aware = [(step, None if isinstance(value, float) and math.isnan(value) else value) for step, value in expected]
    return [(step, None if isinstance(value, float) and math.isnan(value) else value) for step, value in found] == nan_aware


def test_everything_is_drawn_over_one_axis_and_rows_are_in_its_order(offline: dict[str, OfflineRun]) -> None:
    for found in offline.values():
        assert found.axes == {AXIS: "", "*": AXIS}
        assert all(AXIS in row for row in found.history)
        steps = [row[AXIS] for row in found.history]
        assert steps == sorted(steps)
        assert [row["_step"] for row in found.history] == list(range(len(steps)))


def test_the_histogram_counts_the_measured_groups(offline: dict[str, OfflineRun]) -> None:
    rows = [row for row in offline["t0003-s0"].history if "drift/histogram.values" in row]
    assert [(row[AXIS], sum(row["drift/histogram.values"])) for row in rows] == [(2, 3)]


def test_the_freeze_schedule_is_a_table(place: Path, offline: dict[str, OfflineRun]) -> None:
    for found in offline.values():
        row = found.history[-1]
        assert row["freeze/schedule._type"] == "table-file"
        (path,) = (place / "study" / "wandb").glob(f"offline-run-*-{found.run.run_id}/files/{row['freeze/schedule.path']}")
        table = json.loads(path.read_text())
        assert table["columns"] == ["step", "event", "group", "layer", "kind", "elements"]
        assert table["data"] == [[2, 1, "norm", "norm", "BatchNorm2d", 32]]


def test_summary_and_exit_code_say_how_it_ended(place: Path, offline: dict[str, OfflineRun]) -> None:
    ended = run_end(place / "study", "t0003-s0")
    good = offline["t0003-s0"]
    assert good.exit_code == 0
    assert good.summary["status"] == "completed"
    assert {name: good.summary[f"cost/{name}"] for name in ("wall_s", "worker_s", "updates", "flops", "mean_active")} == {
        name: getattr(ended, name) for name in ("wall_s", "worker_s", "updates", "flops", "mean_active")
    }
    assert (good.summary["at_budget/val/f1"], good.summary["last/zero_shot_blur/f1"], good.summary["best/val/f1"]) == (0.5, 0.375, 0.5)
    diverged, killed = offline["t0004-s0"], offline["t0005-s0"]
    assert (diverged.exit_code, diverged.summary["status"], diverged.summary["reason"]) == (1, "diverged", "loss is nan")
    assert (killed.exit_code, killed.summary["status"]) == (1, "failed")


def test_no_secret_nor_the_machine_is_in_any_byte_written(place: Path) -> None:
    written = [path for path in place.rglob("*") if path.is_file()]
    assert len(written) > 20
    private = [SECRET[:40], SECRET, *([socket.gethostname()] if len(socket.gethostname()) > 5 else [])]  # random ids hold short names
    assert [path for path in written for text in private if text.encode() in path.read_bytes()] == []


def test_machine_user_and_repository_are_not_recorded(offline: dict[str, OfflineRun]) -> None:
    for found in offline.values():
        assert (found.run.host, found.run.git.commit, found.run.git.remote_url) == ("", "", "")
        assert not {"stats", "output", "output_raw"} & set(found.kinds)


def test_nothing_is_written_outside_the_study(place: Path) -> None:
    outside = [path for path in (place / "home").rglob("*") if path.is_file()]
    assert outside == []
    assert (place / "output.txt").read_text() == ""


NEXT_DRIVER = """
import sys
from fat_ray.records.reader import runs
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.spec.study import WandbSpec

mirror = WandbMirror(sys.argv[1], WandbSpec(mode="offline"))
for run in sys.argv[2:]:
    mirror.begin_anew(run)
mirror.catch_up(runs(sys.argv[1]))
mirror.close()
"""


def test_the_next_driver_mirrors_again_what_goes_on_or_was_not_mirrored_to_its_end(place: Path, offline: dict[str, OfflineRun]) -> None:
    study = place / "study"
    before = {path.name for path in (study / "wandb").glob("offline-run-*")}
    assert run_driver(NEXT_DRIVER, study, place / "home").returncode == 0
    assert {path.name for path in (study / "wandb").glob("offline-run-*")} == before
    (study / "wandb" / "mirrored" / "offline" / "t0004-s0.json").unlink()  # as if the first driver had been killed on the way
    assert run_driver(NEXT_DRIVER.replace("sys.argv[2:]", "['t0003-s0']"), study, place / "home").returncode == 0
    after = {path.name for path in (study / "wandb").glob("offline-run-*")}
    assert after & before == {name for name in before if "t0005-s0" in name}
    again = offline_runs(study)
    assert sorted(again) == sorted(offline)
    for run, found in again.items():
        assert found.run.run_id == offline[run].run.run_id
        assert same(logged(found, "train/loss"), logged(offline[run], "train/loss"))
        assert found.exit_code == offline[run].exit_code


@pytest.mark.parametrize(("key", "message"), [("", "needs a W&B key"), ("too-short", "is no W&B key")])
def test_online_without_credentials_is_refused_before_the_study_starts(tmp_path: Path, key: str, message: str) -> None:
    code = """
import sys
from fat_ray.errors import OutputError
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.spec.study import WandbSpec

try:
    WandbMirror(sys.argv[1], WandbSpec(mode="online")).check_writable()
except OutputError as error:
    print(error)
"""
    variables = {"WANDB_API_KEY": key} if key else {}
    done = run_driver(code, tmp_path / "study", tmp_path / "home", **variables)
    assert message in done.stdout
    assert done.stderr == ""


def test_the_events_of_the_fixture_reach_over_all_kinds() -> None:
    assert {type(event).__name__ for event in chain([start()], body(), [end()])} == {
        "RunStart",
        "Layers",
        "Step",
        "Eval",
        "Drift",
        "Freeze",
        "Notice",
        "RunEnd",
    }
