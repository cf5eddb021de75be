"""Study files: strict YAML to a `StudySpec`, with every problem of the file reported at once."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from fat_ray.errors import Problem, SpecError
from fat_ray.spec.check import cross_problems
from fat_ray.spec.document import MAX_BYTES, Document, parse
from fat_ray.spec.path import dotted, shorten
from fat_ray.spec.plain import plain
from fat_ray.spec.study import StudySpec
from fat_ray.spec.task import BUILT_IN_TASKS, DATA_PATHS, EMBEDDED
from fat_ray.spec.wording import problems_of

_DISTRIBUTION_KEYS = ("type", "low", "high", "log", "step", "choices", "when")
_FROM_SET = " (given by --set)"


@dataclass(frozen=True)
class LoadedStudy:
    """A study file that was found right.

    Attributes:
        spec: What it says, overrides applied.
        text: The file as it was written.
    """

    spec: StudySpec
    text: str


def load_study(path: str | FilePath, overrides: Sequence[str] = ()) -> LoadedStudy:
    """Reads and checks a study file.

    Args:
        path: The YAML file.
        overrides: Settings `key=value` that replace those of the file; the key is dotted, the value is YAML.

    Raises:
        SpecError: With all problems of the file and of the overrides at once, in the order of their lines.
    """
    return _load(str(path), _read(path), overrides)


def study_of(fields: Mapping[str, Any]) -> LoadedStudy:
    """A study from what its file would hold, in the types that Python programs hold it in, see `fat_ray.spec.plain`.

    Raises:
        SpecError: With all problems at once.
    """
    odd: list[Problem] = []
    values = plain(fields, (), odd)
    if odd:
        raise SpecError("Study(...)", odd)
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump(values, stream)
    return _load("Study(...)", stream.getvalue(), ())


def _load(name: str, text: str, overrides: Sequence[str]) -> LoadedStudy:
    document = parse(text)
    if not document.problems and not isinstance(document.data, dict):
        what = "is empty" if document.data is None else "holds no keys"
        document.problems.append(Problem("", None, f"{what}; a study file starts with name: my-study"))
    if not isinstance(document.data, dict):
        raise SpecError(name, document.problems)
    given = {key for override in overrides if (key := _override(document, override)) is not None}
    _locate(document)
    spec, problems = _validate(document)
    problems = [_mark(problem, given) for problem in problems]
    if spec is None or problems or document.problems:
        found = document.problems + problems
        raise SpecError(name, sorted(found, key=lambda problem: (problem.line is None, problem.line or 0)))
    return LoadedStudy(spec, text)


def study_schema() -> dict[str, Any]:
    """The JSON Schema of a study file, for editors and other tools."""
    schema = StudySpec.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "fat_ray study"}


def _read(path: str | FilePath) -> str:
    try:
        with FilePath(path).open("rb") as file:
            return file.read(MAX_BYTES + 1).decode()
    except UnicodeDecodeError as error:
        raise SpecError(str(path), [Problem("", None, "is not UTF-8 text")]) from error
    except OSError as error:
        raise SpecError(str(path), [Problem("", None, f"cannot be read: {error.strerror or error}")]) from error


def _validate(document: Document) -> tuple[StudySpec | None, list[Problem]]:
    spec, problems = None, []
    try:
        spec = StudySpec.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems = [replace(problem, line=document.line(path)) for path, problem in problems_of(error, document.data).items()]
    seen = {problem.field for problem in problems}
    problems += [
        Problem(dotted(path), value, text, document.line(path))
        for path, value, text in cross_problems(document.data, spec)
        if dotted(path) not in seen
    ]
    return spec, problems


def _override(document: Document, text: str) -> str | None:
    """Applies one `key=value` to the document; the dotted key, or None when the override itself is wrong."""
    key, separator, written = text.partition("=")
    value = parse(written)
    keys = _split(key.strip())
    if not separator or not all(keys):
        document.problems.append(Problem("--set", shorten(text), "must be field=value with a dotted field, such as freeze.threshold=-0.5"))
        return None
    if value.problems:
        document.problems += [replace(problem, field=key, value=shorten(written), line=None) for problem in value.problems]
        return None
    section = document.data
    for name in keys[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            document.problems.append(Problem("--set", shorten(text), f"{name} is not a section"))
            return None
    section[keys[-1]] = value.data
    document.forget(tuple(keys))
    return dotted(tuple(keys))


def _locate(document: Document) -> None:
    """Makes the paths of the task's data absolute, so that workers on other nodes look at the same place.

    They are relative to the present directory, as `output` is: a copy of a study file beside its results means the same.
    """
    task = document.data.get("task")
    if not isinstance(task, dict) or task.get("name") not in BUILT_IN_TASKS:
        return
    for key in DATA_PATHS:
        if isinstance(value := task.get(key), str) and value != EMBEDDED:
            task[key] = str(FilePath(value).expanduser().absolute())


def _split(key: str) -> list[str]:
    """The keys of a dotted override; what is searched is itself a dotted key."""
    keys = key.split(".")
    if keys[0] != "search" or len(keys) < 3:
        return keys
    if keys[-1] in _DISTRIBUTION_KEYS:
        return ["search", ".".join(keys[1:-1]), keys[-1]]
    return ["search", ".".join(keys[1:])]


def _mark(problem: Problem, given: set[str]) -> Problem:
    """Says where a value came from when it is not in the file."""
    if any(problem.field == key or problem.field.startswith((f"{key}.", f"{key}[")) for key in given):
        return replace(problem, message=problem.message + _FROM_SET, line=None)
    return problem
