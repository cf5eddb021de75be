import json
from pathlib import Path

import pytest
import torch

from fat_ray.errors import DataError
from fat_ray.spec.task import CrackSegmentationSpec
from fat_ray.tasks.crack.task import CrackSegmentation
from tests.crack_files import make_rows, png, write_rows


@pytest.fixture
def spec(tmp_path: Path) -> CrackSegmentationSpec:
    path = write_rows(tmp_path / "cracks.parquet", make_rows(10))
    return CrackSegmentationSpec(data=str(path), image_size=32, pretrained=False, head_width=8)


def test_own_data_without_groups_are_split_image_by_image(spec: CrackSegmentationSpec) -> None:
    task = CrackSegmentation(spec)
    assert len(task.train_set()) == 6
    assert {name: len(examples) for name, examples in task.evaluation_sets().items()} == {"val": 2, "test": 2, "zero_shot": 2}


def test_groups_stay_together(spec: CrackSegmentationSpec, tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text(json.dumps({f"tile{i}": i // 2 for i in range(10)}))
    task = CrackSegmentation(spec.model_copy(update={"groups": str(tmp_path / "groups.json")}))
    for name in ("val", "test"):
        images, _ = task.evaluation_sets()[name].batch([0, 1])
        first, second = (255 * images[:, 0].mean((1, 2)) / 20).round().tolist()  # red tells a tile's number, see make_rows
        assert first // 2 == second // 2


def test_zero_shot_is_the_test_split_disturbed(spec: CrackSegmentationSpec) -> None:
    sets = CrackSegmentation(spec).evaluation_sets()
    (test, test_masks), (shifted, shifted_masks) = sets["test"].batch([0, 1]), sets["zero_shot"].batch([0, 1])
    assert torch.equal(test_masks, shifted_masks)
    assert (test - shifted).abs().mean() > 0.01
    assert torch.equal(shifted, CrackSegmentation(spec).evaluation_sets()["zero_shot"].batch([0, 1])[0])


def test_augmentation_can_be_turned_off(spec: CrackSegmentationSpec) -> None:
    plain = CrackSegmentation(spec.model_copy(update={"augment": False})).train_set()
    assert torch.equal(plain.batch([0], [1])[0], plain.batch([0])[0])
    augmented = CrackSegmentation(spec).train_set()
    assert not torch.equal(augmented.batch([0], [1])[0], augmented.batch([0])[0])


def test_sums_of_a_set_give_exactly_the_promised_metrics(spec: CrackSegmentationSpec) -> None:
    task = CrackSegmentation(spec)
    with torch.no_grad():
        sums = task.accumulate(torch.nn.Conv2d(3, 1, 1), task.evaluation_sets()["val"].batch([0, 1]))
    assert (sums["examples"], sums["pixels"]) == (2, 2 * 32 * 32)
    assert list(task.finish(sums)) == list(task.metrics)


def test_split_without_a_crack_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "mask_png": png(0 * torch.zeros(64, 64).numpy() > 0)} for row in make_rows(10)]
    spec = CrackSegmentationSpec(data=str(write_rows(tmp_path / "x.parquet", rows)), image_size=32, pretrained=False)
    with pytest.raises(DataError, match="none of the 6 images of the train split has a crack pixel"):
        CrackSegmentation(spec)


@pytest.mark.timeout(10)
def test_embedded_data_are_complete_and_split_without_leakage() -> None:
    task = CrackSegmentation(CrackSegmentationSpec(image_size=32, pretrained=False))
    sets = {"train": task.train_set(), **task.evaluation_sets()}
    assert {name: len(examples) for name, examples in sets.items()} == {"train": 189, "val": 63, "test": 63, "zero_shot": 63}
