"""From a task's specification to the task. A built-in task is one more case of `build_task`."""

from collections.abc import Callable, Mapping, Sized
from typing import Any, cast, get_args

from torch import nn

from fat_ray import plugins
from fat_ray.errors import DataError
from fat_ray.spec.task import CrackSegmentationSpec, CustomTaskSpec, TaskSpec
from fat_ray.tasks.base import Direction, Task
from fat_ray.tasks.crack.task import CrackSegmentation


def build_task(spec: TaskSpec) -> Task:
    """The task that a specification describes; its data are read and checked.

    Raises:
        DataError: Its data or weights cannot be used, or the user's own task cannot be imported, fails, or is no `Task`.
    """
    match spec:
        case CrackSegmentationSpec():
            return CrackSegmentation(spec)
        case CustomTaskSpec():
            return _build_custom(spec)


def check_task(spec: TaskSpec) -> nn.Module:
    """Builds the task and its model once, so that what is wrong is found before any worker starts.

    Returns:
        The model, for further checks.

    Raises:
        DataError: See `build_task`; or a set is empty, ``val`` is missing, or the model cannot be built.
    """
    task = build_task(spec)
    evaluation_sets = _call(spec.name, "evaluation_sets", task.evaluation_sets)
    if not isinstance(evaluation_sets, Mapping) or "val" not in evaluation_sets:
        raise DataError(f"task {spec.name}: evaluation_sets() must return a mapping with the key val, not {evaluation_sets!r}")
    for name, examples in {"train": _call(spec.name, "train_set", task.train_set), **evaluation_sets}.items():
        if not isinstance(examples, Sized) or not callable(getattr(examples, "batch", None)):
            raise DataError(f"task {spec.name}: the {name} set is a {type(examples).__name__} without __len__ and batch()")
        if not len(examples):
            raise DataError(f"task {spec.name}: the {name} set is empty")
    model = _call(spec.name, "build_model", task.build_model)
    if not isinstance(model, nn.Module):
        raise DataError(f"task {spec.name}: build_model() returned a {type(model).__name__}; it must be a torch.nn.Module")
    return model


def _build_custom(spec: CustomTaskSpec) -> Task:
    make = plugins.resolve("task.name", spec.name, "a task", DataError)
    task = _call(spec.name, "the call with task.settings", make, **spec.settings)
    missing = [name for name in (*vars(Task), "metrics") if not name.startswith("_") and not hasattr(task, name)]
    if missing:
        raise DataError(f"task {spec.name} returned a {type(task).__name__} that lacks {', '.join(missing)} of fat_ray.tasks.base.Task")
    directions = get_args(Direction)
    if not isinstance(task.metrics, Mapping) or not task.metrics or any(value not in directions for value in task.metrics.values()):
        raise DataError(f"task {spec.name}: metrics must map each metric to maximize or minimize, not {task.metrics!r}")
    return cast("Task", task)


def _call(name: str, what: str, function: Callable[..., Any], **settings: Any) -> Any:
    return plugins.call(f"task {name}: {what}", DataError, function, **settings)
