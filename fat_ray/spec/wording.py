"""Pydantic's complaints in plain words: what the value is, and what would be right."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fat_ray.errors import Problem
from fat_ray.spec.base import Strict, nearest
from fat_ray.spec.keys import run_fields, section_model, task_model
from fat_ray.spec.path import Path, dotted, shorten
from fat_ray.spec.study import StudySpec

_TYPES: Mapping[str, str] = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}
_LIMITS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("greater than {}", "gt"),
    "greater_than_equal": ("at least {}", "ge"),
    "less_than": ("less than {}", "lt"),
    "less_than_equal": ("at most {}", "le"),
    "multiple_of": ("a multiple of {}", "multiple_of"),
    "string_too_long": ("at most {} characters long", "max_length"),
    "string_too_short": ("at least {} characters long", "min_length"),
    "too_short": ("a list of at least {}", "min_length"),
    "too_long": ("a list of at most {}", "max_length"),
}
_PATTERNS: Mapping[str, str] = {
    "name": "start with a lower-case letter or digit and hold only lower-case letters, digits, _ and -, at most 64 in all",
    "task.name": "be a built-in task or module:function of your own, such as my_package.my_task:build",
    "metric": "be val/<metric of the task>, mean_active, mean_active_fraction, worker_s, train_s or flops",
    "scheduler.metric": "be val/<metric of the task>, such as val/f1",
    "baselines": "be the name of a policy; one of your own, module:function, needs a section with name and policy",
    "wandb.project": "not hold any of / \\ # ? % :",
}


def problems_of(error: ValidationError, data: Any, root: type[Strict] = StudySpec) -> dict[Path, Problem]:
    """What pydantic found, at most one problem per field.

    Args:
        error: As pydantic raised it.
        data: What was validated.
        root: As what.
    """
    found: dict[Path, Problem] = {}
    for item in error.errors(include_url=False):
        path = field_path(item["loc"])
        text = message(item, path, data, root)
        if item["type"] == "unknown_task" and isinstance(section := data.get("task"), dict):
            path, item["input"] = ("task", "name"), section.get("name")
        hidden = item["type"] == "missing" or isinstance(item["input"], dict | list)
        found.setdefault(path, Problem(dotted(path), None if hidden else shorten(item["input"]), text))
    return found


def field_path(loc: Path) -> Path:
    """Pydantic's location without what only it knows: tags of unions, and members of a union of scalars."""
    if loc[:1] == ("task",) and len(loc) > 1:
        return ("task", *loc[2:])
    if loc[:1] == ("search",) and len(loc) > 2:
        path = (*loc[:2], *loc[3:])
        return path[:4] if path[2:3] == ("choices",) else path
    if loc[:1] == ("baselines",) and len(loc) > 2:
        return (*loc[:2], *loc[3:])
    return ("search", *loc) if loc == ("warm_start",) else loc


def message(error: ErrorDetails, path: Path, data: Any, root: type[Strict] = StudySpec) -> str:
    """What is wrong with the value at the path and what would be right.

    Args:
        error: As pydantic gives it.
        path: The field's path (see `field_path`).
        data: The whole file, which tells what its sections are.
        root: The specification of the whole.
    """
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if path[:1] == ("search",) and path[2:3] == ("choices",) and len(path) == 4:
        return f"must be a single value, not {describe(value)}"
    if kind in _TYPES:
        empty = "; remove the line or give its keys" if value is None and _TYPES[kind] == "a section of keys" else ""
        return f"must be {_TYPES[kind]}, not {describe(value)}{empty}"
    if kind in _LIMITS:
        text, key = _LIMITS[kind]
        return f"must be {text.format(context[key])}"
    return _other(error, path, data, root)


def _other(error: ErrorDetails, path: Path, data: Any, root: type[Strict]) -> str:
    value, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "missing":
            text = "is missing"
        case "extra_forbidden":
            text = unknown_key(path, data, root)
        case "finite_number":
            text = f"must be a finite number, not {describe(value)}"
        case "literal_error":
            text = _choices(str(value), context["expected"])
        case "string_pattern_mismatch":
            text = f"must {_pattern(path)}"
        case "value_error":
            text = str(context["error"])
        case _:
            text = error["msg"][:1].lower() + error["msg"][1:]
    return text


def describe(value: object) -> str:
    """The value with its kind, so that `1` and `"1"` differ."""
    if isinstance(value, str):
        return f"the text '{shorten(value, 40)}'"
    if isinstance(value, dict | list):
        return "a section of keys" if isinstance(value, dict) else "a list"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return "nothing" if value is None else shorten(value, 40)


def _choices(value: str, expected: str) -> str:
    near = nearest(value, expected.replace(" or ", ", ").replace("'", "").split(", "))
    return f"must be {expected.replace(chr(39), '')}" + (f"; did you mean {near}?" if near else "")


def _pattern(path: Path) -> str:
    name = ".".join(str(key) for key in path)
    if path[:1] == ("baselines",) and len(path) == 2:
        name = "baselines"
    return _PATTERNS.get(name) or _PATTERNS.get(str(path[-1])) or "have another form"


def unknown_key(path: Path, data: Any, root: type[Strict] = StudySpec) -> str:
    """What an unknown key was probably meant to be."""
    key, model = str(path[-1]), section_model(path[:-1], data, root)
    known = list(model.model_fields) if model is not None else []
    elsewhere = [field for field in run_fields(task_model(data)) if field.partition(".")[0] in root.model_fields]
    if key in elsewhere and len(path) == 1:
        section, _, last = key.rpartition(".")
        return f"unknown key; write {last} inside the section {section}"
    if near := nearest(key, known):
        return f"unknown key; did you mean {near}?"
    if moved := next((field for field in elsewhere if field.rpartition(".")[2] == key), None):
        return f"unknown key here; did you mean {moved}?"
    return f"unknown key; known here: {', '.join(known)}"
