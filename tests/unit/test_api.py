"""Studies from Python: the checks of study files, and the records of a study that ran."""

from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest

import fat_ray
from fat_ray.api import search_insights
from fat_ray.errors import OutputError, RecordError, SpecError
from fat_ray.spec.load import load_study
from fat_ray.spec.run import FreezeSpec, TrainSpec
from fat_ray.spec.study import Objective
from tests.support.studies import FakeRun, study_spec, write_study


def test_fields_and_file_give_the_same_study(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntrain: {steps: 7, optimizer: {betas: [0.8, 0.9]}}\nseeds: [0, 1]\n")
    study = fat_ray.Study(name="mine", train={"steps": 7, "optimizer": {"betas": [0.8, 0.9]}}, seeds=[0, 1])
    assert study.spec == fat_ray.Study.from_yaml(path).spec == load_study(path).spec
    assert fat_ray.Study.from_yaml(path, ["train.steps=9"]).spec.train.steps == 9


def test_all_problems_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        fat_ray.Study(name="mine", train={"steps": 0, "stops": 3})
    assert "train.steps" in str(caught.value)
    assert "train.stops" in str(caught.value)


def test_values_that_no_file_could_hold_are_refused_by_their_place() -> None:
    with pytest.raises(SpecError) as caught:
        fat_ray.Study(name="mine", train={"steps": object()}, seeds=[0, {1}])
    assert str(caught.value).splitlines() == [
        "Study(...): 2 problems",
        "  train.steps: is a object; a study holds numbers, text, paths, lists and mappings",
        "  seeds[1]: is a set; a study holds numbers, text, paths, lists and mappings",
    ]


class Policy(StrEnum):
    NONE = "none"


def test_the_types_of_python_programs_are_taken_for_what_they_mean(tmp_path: Path) -> None:
    study = fat_ray.Study(
        name="mine",
        train=TrainSpec(steps=7),
        fisher={"every": np.int64(3)},
        freeze={"policy": Policy.NONE, "threshold": np.float32(-0.5)},
        search={"drift.bins": {"type": "categorical", "choices": (16, 32)}},
        objectives=(Objective(metric="val/f1", direction="maximize"),),
        seeds=range(3),
        baselines=(),
        output=tmp_path / "results",
    )
    spec = study.spec
    assert (spec.train.steps, spec.fisher.every, spec.freeze.policy, spec.freeze.threshold) == (7, 3, "none", -0.5)
    assert (spec.seeds, spec.baselines, [goal.metric for goal in spec.objectives]) == ([0, 1, 2], [], ["val/f1"])
    assert study.directory == tmp_path / "results" / "mine"
    (tmp_path / "mine.yaml").write_text(study._loaded.text)  # what is kept beside the records is a study file
    assert fat_ray.Study.from_yaml(tmp_path / "mine.yaml").spec == spec


def test_a_section_object_leaves_the_rest_to_the_preset() -> None:
    study = fat_ray.Study(name="mine", preset="paper", freeze=FreezeSpec(every=5))
    assert (study.spec.freeze.every, study.spec.freeze.threshold) == (5, -0.9)


@pytest.mark.cpu_limit(5)  # imports polars
def test_results_are_those_of_the_directory(tmp_path: Path) -> None:
    study = fat_ray.Study(name="mine", output=str(tmp_path))
    assert study.directory == tmp_path / "mine"
    with pytest.raises(RecordError):
        study.runs()
    write_study(study.directory, [FakeRun("t0000-s0", trial=0, f1=0.5)])
    assert study.runs().equals(study.compare().runs)
    assert study.runs()["run"].to_list() == ["t0000-s0"]


def test_best_and_front_are_those_of_the_comparison(tmp_path: Path) -> None:
    study = fat_ray.Study(name="mine", output=str(tmp_path))
    runs = [FakeRun("t0000-s0", trial=0, f1=0.5, frozen=0.2), FakeRun("t0001-s0", trial=1, f1=0.7, frozen=0.5)]
    write_study(study.directory, runs)
    assert study.trials()["setting"].to_list() == ["trial 1", "trial 0"]
    assert study.front()["setting"].to_list() == ["trial 1"]
    best = study.best()
    assert best is not None
    assert best["setting"] == "trial 1"
    assert [trial.name for trial in study.status().front] == ["t0001"]


def test_a_notebook_shows_what_a_study_will_do_and_then_how_it_stands(tmp_path: Path) -> None:
    study = fat_ray.Study(name="mine", search={"freeze.threshold": {"type": "float", "low": -1, "high": 0}})
    study.directory = tmp_path / "mine"
    page = study._repr_html_()
    assert "mine, not launched yet" in page
    assert "freeze.threshold" in page
    assert "maximize val/f1, minimize mean_active" in page
    write_study(study.directory, [FakeRun("t0000-s0", trial=0, f1=0.5)])
    page = study._repr_html_()
    assert page.startswith("<pre")
    assert "t0000" in page
    assert "Pareto front" in page


@pytest.mark.cpu_limit(5)  # imports torch
def test_launching_twice_is_one_clear_exception(tmp_path: Path) -> None:
    study = fat_ray.Study(name="mine", task={"name": "tests.support.tiny_task:make_task"}, output=tmp_path, wandb={"mode": "disabled"})
    study.directory.mkdir()
    (study.directory / "study.json").write_text("{}")
    with pytest.raises(OutputError, match="mine already holds a study; choose another directory"):
        study.launch()
    assert (study.directory / "study.json").read_text() == "{}"


@pytest.mark.cpu_limit(5)  # imports Optuna and scipy.stats
def test_studies_are_compared_and_their_searches_looked_into(tmp_path: Path) -> None:
    runs = [
        FakeRun(f"t{trial:04d}-s0", trial=trial, f1=0.4 + 0.01 * trial, params={"freeze.threshold": -1 + 0.03 * trial})
        for trial in range(24)
    ]
    write_study(tmp_path / "a", runs, spec=study_spec("a", steps=4, baselines=[]))
    write_study(tmp_path / "b", runs[:2], spec=study_spec("b", steps=4, baselines=[]))
    comparison = fat_ray.compare([tmp_path / "a", tmp_path / "b"], sort="val_last:desc")
    assert comparison.runs["run"][0] == "t0023-s0"
    first, second = search_insights(comparison)
    assert (first.study, first.trials, first.best_share) == ("a", 24, 5 / 24)
    assert first.importances[0].shares == {"freeze.threshold": 1.0}
    assert (second.trials, second.importances[0].shares) == (2, {})
    assert 0 <= second.hypervolume < first.hypervolume <= 1
    assert first.ideal == second.ideal
    assert first.ideal[0] == pytest.approx(0.63)
    assert first.reference[0] == pytest.approx(0.4 - 0.023)


def test_without_a_ranked_setting_there_is_no_front(tmp_path: Path) -> None:
    write_study(tmp_path / "a", [FakeRun("t0000-s0", trial=0, status=None)], spec=study_spec("a", steps=4))
    (insight,) = search_insights(fat_ray.compare([tmp_path / "a"]))
    assert (insight.hypervolume, insight.front, insight.trials) == (None, 0, 0)
