"""`fat-ray replay` and `compare --replay` on records of runs that were never trained."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fat_ray.analysis.replay import values_of
from fat_ray.cli.main import app
from fat_ray.errors import InputError
from fat_ray.records.manifest import create_study
from fat_ray.spec.study import StudySpec
from tests.support.recordings import STEPS, write_drift_run

OBSERVED = {"freeze": {"policy": "none"}, "fisher": {"every": 2, "record": "always"}}
DISTANCE = np.array([[np.nan] * 4, *[[0.1, 0.2, 0.3, 0.4]] * 5])


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A run without freezing, and those that learnt on otherwise once the first group was frozen."""
    create_study(tmp_path / "drifting", StudySpec(name="drifting"), "name: drifting\n", min_free_bytes=0)
    write_drift_run(tmp_path / "drifting", "none-s0", DISTANCE, **OBSERVED)
    return tmp_path / "drifting"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("freeze.threshold=-0.5", [-0.5]),
        ("freeze.threshold=-1:-0.7:0.1", [-1.0, -0.9, -0.8, -0.7]),
        ("freeze.every=4:9:2", [4, 6, 8]),
        ("freeze.every=[4, 8]", [4, 8]),
        ("drift.score=[mean, last]", ["mean", "last"]),
        ("drift.score = last", ["last"]),
        ("freeze.threshold=0:0.3:0.1", [0.0, 0.1, 0.2, 0.3]),
    ],
)
def test_values_are_one_a_list_or_a_range(text: str, values: list[Any]) -> None:
    (found,) = values_of([text]).values()
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text",
    [
        "freeze.threshold",
        "=1",
        "freeze.threshold=",
        "freeze.threshold={a: 1}",
        "freeze.every=1:2:0",
        "freeze.every=2:1:1",
        "freeze.every=[1",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be field=value"):
        values_of([text])


def test_a_single_setting_shows_its_decisions(study: Path) -> None:
    wanted = {"freeze.threshold": -0.9, "drift.score": "last", "drift.smoothing": 0}
    arguments = [f"--set={key}={value}" for key, value in wanted.items()]
    document = json.loads(invoke("replay", study, *arguments, "--format", "json").stdout)
    [setting] = document["settings"]
    assert setting["params"] == wanted
    assert setting["schedule"] == [[2, 30], [4, 20], [6, 10]]
    assert setting["mean_active"] == 10 * (2 + 4 + 6 + STEPS) / STEPS
    assert setting["mean_active_fraction"] == setting["mean_active"] / 40
    assert (setting["final_active_fraction"], setting["frozen_groups"], setting["freezing_events"]) == (0.25, 3, 3)
    assert (setting["first_freeze"], setting["known_until"]) == (2, STEPS)
    assert [(event["step"], event["frozen"]) for event in document["events"]] == [(2, ["l0"]), (4, ["l1"]), (6, ["l2"]), (8, []), (10, [])]
    assert document["events"][0]["threshold"] == pytest.approx(0.25 - 0.9 * np.std([0.1, 0.2, 0.3, 0.4]))
    assert document["base"]["freeze.every"] == 2
    weights, inputs = 100 * (3 + 5 + 7 + STEPS), 100 * (3 + 5 + 7)  # a layer's first input needs no gradient
    assert setting["flops"] == pytest.approx(400 * STEPS + weights + inputs)
    assert setting["flops_ratio"] == pytest.approx(setting["flops"] / (1100 * STEPS))


def test_all_combinations_come_out_in_the_order_that_is_asked_for(study: Path) -> None:
    arguments = ["--set", "freeze.threshold=-1:1:0.5", "--set", "freeze.every=[2, 4]", "--sort", "mean_active:desc", "--format", "csv"]
    rows = list(csv.DictReader(io.StringIO(invoke("replay", study, *arguments).stdout)))
    assert len({(row["freeze.threshold"], row["freeze.every"]) for row in rows}) == 10
    active = [float(row["mean_active"]) for row in rows]
    assert active == sorted(active, reverse=True)
    assert active[0] > active[-1]


def test_the_table_is_cut_and_says_what_it_cannot_know(study: Path) -> None:
    shown = invoke("replay", study, "--limit", "2", "--set", "freeze.threshold=-1:1:0.5", "--set", "fisher.every=[2,4]").stdout
    assert "8 more settings: --limit 0, or --format csv" in shown
    assert "Freezing changes later drift" in shown
    assert "for other values of fisher.every it is approximated" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "train.steps=3"], "train.steps: a replay cannot know"),
        (["--set", "fisher.every=3"], "must be a multiple of 2"),
        (["--sort", "speed"], "--sort speed: must be one of freeze.threshold, mean_active"),
        (["--run", "t0009-s0"], "has no records of a run t0009-s0; it has none-s0"),
        (["--set", "freeze.threshold=0:1:0.000001"], "more than 200,000 settings"),
    ],
)
def test_what_cannot_be_replayed_ends_with_2_and_one_message(study: Path, arguments: list[str], said: str) -> None:
    result = invoke("replay", study, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("fat-ray: ")
    assert said in result.stderr


def test_a_study_without_such_a_run_says_how_to_get_one(tmp_path: Path) -> None:
    create_study(tmp_path / "drifting", StudySpec(name="drifting"), "", min_free_bytes=0)
    write_drift_run(tmp_path / "drifting", "t0000-s0", DISTANCE, [2, STEPS, STEPS, STEPS])
    for arguments in (["replay", tmp_path / "drifting"], ["compare", tmp_path / "drifting", "--replay"]):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "{name: observed, policy: none, set: {fisher.record: always}}" in result.stderr


def test_a_run_that_froze_is_replayed_as_far_as_it_goes(study: Path) -> None:
    write_drift_run(study, "t0000-s0", DISTANCE, [2, STEPS, STEPS, STEPS])
    arguments = [
        "--set",
        "freeze.threshold=-0.9",
        "--set",
        "freeze.warmup_steps=[0, 8]",
        "--format",
        "json",
        "--sort",
        "freeze.warmup_steps",
    ]
    document = json.loads(invoke("replay", study / "t0000-s0", *arguments).stdout)
    known, unknown = document["settings"]
    assert (known["known_until"], known["first_freeze"]) == (STEPS, 2)
    assert (unknown["known_until"], unknown["mean_active"], unknown["flops"]) == (8, None, None)
    assert "what 1 of 2 settings need of their later drift is not known" in " ".join(document["notes"])


SMOOTHED = {"score": "last", "smoothing": 0.0}


def test_foretold_and_real_schedules_stand_side_by_side(study: Path) -> None:
    drift = {"threshold": -0.9, "policy": "fisher_drift"}
    write_drift_run(study, "t0000-s0", DISTANCE, [2, 4, 6, STEPS], freeze=drift, drift=SMOOTHED)
    write_drift_run(study, "t0001-s0", DISTANCE, [2, 10, STEPS, STEPS], freeze=drift, drift=SMOOTHED)
    write_drift_run(study, "t0002-s1", DISTANCE, [4, 6, STEPS, 8], freeze=drift, drift=SMOOTHED)
    write_drift_run(study, "t0003-s0", DISTANCE, [2, 4, 6, STEPS], freeze=drift, train={"steps": STEPS, "optimizer": {"lr": 0.5}})
    document = json.loads(invoke("compare", study, "--replay", "--format", "json").stdout)
    same, later, other = document["runs"]
    assert [pair["reference"] for pair in document["runs"]] == ["none-s0"] * 3
    assert (same["real"], same["first_difference"], same["jaccard"], same["begins_alike"]) == (same["foretold"], None, 1.0, True)
    assert (later["first_freeze"], later["first_difference"], later["begins_alike"], later["jaccard"]) == (2, 4, True, 2 / 3)
    assert later["foretold"] < later["real"]
    assert (other["exact"], other["begins_alike"], other["first_difference"], other["jaccard"]) == (False, False, 2, 0.5)
    assert same["params"] == {"drift.score": "last", "drift.smoothing": 0.0, "freeze.threshold": -0.9}
    [skipped] = document["skipped"]
    assert skipped["run"] == "t0003-s0"
    assert "train.optimizer.lr differ from those of none-s0" in skipped["reason"]
    text = invoke("compare", study, "--replay").stdout
    assert "1 of 3 schedules came out as foretold to their end" in text
    assert "What was frozen first came out as foretold in 2 of 2 runs" in text
    rows = list(csv.DictReader(io.StringIO(invoke("compare", study, "--replay", "--format", "csv").stdout)))
    assert [row["run"] for row in rows] == ["t0000-s0", "t0001-s0", "t0002-s1"]
    assert rows[0]["params.freeze.threshold"] == "-0.9"
