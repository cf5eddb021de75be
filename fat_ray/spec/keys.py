"""Which keys a study file knows, which of them can be searched, and what a misspelt one was meant to be."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, TypeAdapter
from pydantic.fields import FieldInfo

from fat_ray.spec.base import Strict
from fat_ray.spec.run import RunSpec
from fat_ray.spec.space import Choice, FloatRange, IntRange
from fat_ray.spec.study import StudySpec
from fat_ray.spec.task import BUILT_IN_TASKS, CrackSegmentationSpec, CustomTaskSpec

TASK_METRICS: Mapping[str, Mapping[str, str]] = {
    "crack_segmentation": {"f1": "maximize", "iou": "maximize", "loss": "minimize"},
}
"""Metrics of the built-in tasks that a search can improve, with the better direction."""

FIXED: Mapping[str, str] = {
    "task.name": "runs of different tasks cannot be compared",
    "task.data": "all runs of a study share their data",
    "task.groups": "all runs of a study share their data",
    "task.val_fraction": "all runs of a study share one split",
    "task.test_fraction": "all runs of a study share one split",
    "task.split_seed": "all runs of a study share one split",
    "train.steps": "it is the budget at which runs are compared",
    "train.evaluate_every": "runs are compared at equal evaluations",
    "train.workers": "resources are planned once for the whole study",
    "train.cpus_per_worker": "resources are planned once for the whole study",
    "train.gpus_per_worker": "resources are planned once for the whole study",
    "train.backend": "resources are planned once for the whole study",
    "train.stall_timeout_s": "it changes nothing but when a worker counts as dead",
    "train.checkpoint.every": "it decides what is kept, not what is learnt",
    "train.checkpoint.keep": "it decides what is kept, not what is learnt",
    "train.checkpoint.retain": "it decides what is kept, not what is learnt",
    "train.retries": "it decides what happens after a failure, not what is learnt",
    "fisher.record": "it decides what is recorded, not what is learnt",
    "freeze.follow": "it is set by the study",
}
"""Fields of a run that cannot be searched, and why."""

_DISTRIBUTIONS: Mapping[object, type[Strict]] = {"float": FloatRange, "int": IntRange, "categorical": Choice}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def task_model(data: object) -> type[Strict] | None:
    """The specification class of the task that the file's data names; None when it names none."""
    section = data.get("task", {"name": BUILT_IN_TASKS[0]}) if isinstance(data, dict) else None
    name = section.get("name") if isinstance(section, dict) else None
    if name in BUILT_IN_TASKS:
        return CrackSegmentationSpec
    return CustomTaskSpec if isinstance(name, str) and ":" in name else None


def section_model(path: tuple[str | int, ...], data: Any, root: type[Strict] = StudySpec) -> type[Strict] | None:
    """The specification class of the section at the path of a study file; None where there is none."""
    model: type[Strict] | None = root
    value = data
    for position, key in enumerate(path):
        value = _entry(value, key)
        if path[: position + 1] == ("task",):
            model = task_model(data)
        elif path[0] == "search":
            kind = value.get("type") if isinstance(value, dict) and position == 1 else None
            model = _DISTRIBUTIONS.get(kind) if isinstance(kind, str) else None
        elif isinstance(key, str):
            info = model.model_fields.get(key) if model is not None else None
            model = None if info is None else _strict_in(info.annotation)
    return model


def _entry(data: Any, key: str | int) -> Any:
    try:
        return data[key]
    except (KeyError, IndexError, TypeError):
        return None


def _strict_in(annotation: Any) -> type[Strict] | None:
    """The specification class that the annotation is, or that the items of its list are."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    return next((found for item in get_args(annotation) if (found := _strict_in(item))), None)


def run_fields(task: type[Strict] | None) -> dict[str, FieldInfo]:
    """Every field of a run that holds a value, by its dotted key.

    Args:
        task: Specification class of the task; None leaves the task's fields out.
    """
    return dict(_leaves(RunSpec, "", task))


def _leaves(model: type[Strict], prefix: str, task: type[Strict] | None) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        inner = task if key == "task" else _strict_in(info.annotation)
        if inner is not None:
            yield from _leaves(inner, f"{key}.", task)
        elif key != "task":
            yield key, info


def scalar(info: FieldInfo) -> bool:
    """Whether the field holds a single number, text or flag."""
    return not any(kind in (list, tuple, dict) for kind in _origins(info.annotation))


def _origins(annotation: Any) -> Iterator[Any]:
    yield getattr(annotation, "__origin__", annotation)
    for item in get_args(annotation):
        yield from _origins(item)


def value_adapter(info: FieldInfo) -> TypeAdapter[Any]:
    """A validator of this field's values alone, as strict as the specification."""
    annotation: Any = info.annotation
    for constraint in info.metadata:
        annotation = Annotated[annotation, constraint]
    return TypeAdapter(annotation, config=_STRICT)
