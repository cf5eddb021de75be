"""Studies from Python: the checks of study files, and the records of a study that ran."""

from pathlib import Path

import pytest

import fat_ray
from fat_ray.api import search_insights
from fat_ray.errors import RecordError, SpecError
from fat_ray.spec.load import load_study
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


def test_values_that_no_file_could_hold_are_refused() -> None:
    with pytest.raises(SpecError, match="no plain one"):
        fat_ray.Study(name="mine", train={"steps": object()})


def test_results_are_those_of_the_directory(tmp_path: Path) -> None:
    study = fat_ray.Study(name="mine", output=str(tmp_path))
    assert study.directory == tmp_path / "mine"
    with pytest.raises(RecordError):
        study.runs()
    write_study(study.directory, [FakeRun("t0000-s0", trial=0, f1=0.5)])
    assert study.runs().equals(study.compare().runs)
    assert study.runs()["run"].to_list() == ["t0000-s0"]


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
