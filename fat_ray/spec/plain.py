"""From the types in which Python programs hold settings to those that a study file can hold."""

import os
from collections.abc import Mapping
from enum import Enum
from typing import Any

from fat_ray.errors import Problem
from fat_ray.spec.base import Strict
from fat_ray.spec.path import dotted

Path = tuple[str | int, ...]


def plain(value: Any, path: Path, problems: list[Problem]) -> Any:
    """Mappings and sections as mappings; tuples, ranges and arrays as lists; paths as text; enumerations and NumPy numbers as values.

    Args:
        value: Any setting.
        path: Where it stands.
        problems: Gets one for each value of another type.
    """
    if isinstance(value, Strict):  # only what was given: the rest is for presets and defaults
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {_key(key): plain(item, (*path, str(key)), problems) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item, (*path, number), problems) for number, item in enumerate(value)]
    return _scalar(value, path, problems)


def _key(key: Any) -> Any:
    return str(key) if isinstance(key, str) else key


def _scalar(value: Any, path: Path, problems: list[Problem]) -> Any:
    if isinstance(value, Enum):
        return plain(value.value, path, problems)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy, torch and others
        return plain(value.tolist(), path, problems)
    for kind in (str, int, float):  # of a class of its own
        if isinstance(value, kind):
            return kind(value)
    problems.append(Problem(dotted(path), None, f"is a {type(value).__name__}; a study holds numbers, text, paths, lists and mappings"))
    return None
