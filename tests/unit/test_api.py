"""Studies from Python: the checks of study files, and the records of a study that ran."""

from pathlib import Path

import pytest

import fat_ray
from fat_ray.errors import RecordError, SpecError
from fat_ray.spec.load import load_study
from tests.support.studies import FakeRun, write_study


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
