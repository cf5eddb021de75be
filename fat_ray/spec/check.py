"""What one field of a study cannot know alone: whether searched keys exist, their values fit, and metrics are known."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fat_ray.spec.base import nearest
from fat_ray.spec.baseline import BaselineSpec
from fat_ray.spec.keys import FIXED, TASK_METRICS, run_fields, scalar, task_model, value_adapter
from fat_ray.spec.path import Path, dotted, shorten
from fat_ray.spec.policy import POLICIES
from fat_ray.spec.run import RunSpec
from fat_ray.spec.search import branches, condition_problems, sampler_problems
from fat_ray.spec.space import Distribution, FloatRange, IntRange
from fat_ray.spec.study import StudySpec
from fat_ray.spec.task import CustomTaskSpec
from fat_ray.spec.wording import field_path, message

Finding = tuple[Path, str | None, str]
"""Path, value as shown, and what is wrong."""

MAX_LISTED = 1000
"""Integer ranges up to this many values are checked value by value, longer ones at both ends."""

_RANDOM_MATCHED = "random_matched follows the schedule of a finished run; list it under baselines instead"
_DISTRIBUTION: TypeAdapter[Distribution] = TypeAdapter(Distribution)


def cross_problems(data: Mapping[str, Any], spec: StudySpec | None) -> Iterator[Finding]:
    """Everything that is wrong between fields.

    Args:
        data: The file's data, valid or not.
        spec: The specification, when the file is otherwise valid.
    """
    if isinstance(search := data.get("search"), dict):
        search = {key: value for key, value in search.items() if key != "warm_start"}
        data = {**data, "search": search}
    conditional = [] if spec is None else list(_conditions(data, spec))
    yield from conditional
    if isinstance(search, dict):
        yield from _search_keys(search, data)
        yield from _values(data, None if conditional else spec)
    yield from _metrics(data)
    if spec is not None:
        yield from _between(spec)
        yield from baseline_problems(data, spec)
        yield from () if conditional else sampler_problems(spec)


def _conditions(data: Mapping[str, Any], spec: StudySpec) -> Iterator[Finding]:
    fields = searchable(data) | run_fields(task_model(data))

    def unfit(field: str, value: Any) -> str | None:
        info = fields[field]
        return None if info is None else _value_problem(value_adapter(info), None, field, value)

    return condition_problems(spec, fields, unfit)


def searchable(data: Mapping[str, Any]) -> dict[str, FieldInfo | None]:
    """The fields that a search may vary, by dotted key; None for settings of one's own task or policy, whose limits only they know."""
    task = task_model(data)
    found: dict[str, FieldInfo | None] = {key: info for key, info in run_fields(task).items() if key not in FIXED and scalar(info)}
    if task is CustomTaskSpec:
        found |= dict.fromkeys(_settings(data["task"].get("settings"), "task.settings"))
    freeze = data.get("freeze")
    if isinstance(freeze, dict):
        found |= dict.fromkeys(_settings(freeze.get("options") or {}, "freeze.options"))
    return found


def _settings(value: Any, prefix: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _settings(inner, f"{prefix}.{key}")
    elif not isinstance(value, list):
        yield prefix


def _search_keys(search: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Finding]:
    known, fields = searchable(data), run_fields(task_model(data))
    for key in search:
        if key in known:
            continue
        if key in FIXED:
            yield ("search", key), None, f"cannot be searched: {FIXED[key]}"
        elif key in fields:
            yield ("search", key), None, "cannot be searched: it is not a single number, text or flag"
        elif task_model(data) is not None or not key.startswith("task."):
            near = next((field for field in known if field.endswith(f".{key}")), None) or nearest(key, known)
            hint = f"did you mean {near}?" if near else "give the dotted key of a field, such as freeze.threshold"
            yield ("search", key), None, f"no field of a run has this name; {hint}"


def _values(data: Mapping[str, Any], spec: StudySpec | None) -> Iterator[Finding]:
    known = searchable(data)
    run = None if spec is None else spec.model_dump(mode="json", include=set(RunSpec.model_fields))
    for key, written in data["search"].items():
        info, distribution = known.get(key), _distribution(written)
        if info is None or distribution is None:
            continue
        adapter = value_adapter(info)
        contexts = [{}] if spec is None or run is None else branches(spec.search, run, key) or [{}]
        for place, value in _listed(distribution):
            if (wrong := _in_all(contexts, adapter, run, key, value)) is not None:
                hint = "; use type: int" if isinstance(distribution, FloatRange) and "whole number" in wrong else ""
                yield ("search", key, *place), shorten(value), f"{key} {wrong}{hint}"
                break


def _distribution(written: Any) -> Distribution | None:
    try:
        return _DISTRIBUTION.validate_json(json.dumps(written))
    except ValidationError:
        return None  # reported with the file's other problems


def _listed(distribution: Distribution) -> Iterator[tuple[Path, Any]]:
    """The values that the search may take, with their place in the distribution; for long ranges the ends."""
    if isinstance(distribution, FloatRange | IntRange):
        yield ("low",), distribution.low
        yield ("high",), distribution.high
        inner = range(distribution.low, distribution.high, distribution.step) if isinstance(distribution, IntRange) else ()
        if len(inner) <= MAX_LISTED:
            yield from (((), value) for value in inner[1:])
    else:
        yield from ((("choices", i), value) for i, value in enumerate(distribution.choices))


def _in_all(
    contexts: Sequence[Mapping[str, Any]], adapter: TypeAdapter[Any], run: dict[str, Any] | None, key: str, value: Any
) -> str | None:
    """Why the field cannot take the value in any of the settings of other fields under which it is suggested; None if it can in one."""
    found: str | None = None
    for context in contexts:
        wrong = _value_problem(adapter, None if run is None else substitute(run, context), key, value)
        if wrong is None:
            return None
        found = found or wrong
    return found


def _value_problem(adapter: TypeAdapter[Any], run: dict[str, Any] | None, key: str, value: Any) -> str | None:
    """Why the field cannot take the value, or the run cannot with it; None when all is well or the run is not known."""
    try:
        adapter.validate_json(json.dumps(value))
        if run is not None:
            RunSpec.model_validate_json(json.dumps(substitute(run, {key: value})))
    except ValidationError as error:
        return message(error.errors(include_url=False)[0], tuple(key.split(".")), run)
    return _RANDOM_MATCHED if (key, value) == ("freeze.policy", "random_matched") else None


def substitute(run: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a run's plain data with dotted keys replaced."""
    copy: dict[str, Any] = json.loads(json.dumps(run))
    for key, value in params.items():
        *sections, last = key.split(".")
        section = copy
        for name in sections:
            section = section[name]
        section[last] = value
    return copy


def baseline_problems(data: Mapping[str, Any], spec: StudySpec) -> Iterator[Finding]:
    """What is wrong with the settings of baselines."""
    fields, run = searchable(data), spec.model_dump(mode="json", include=set(RunSpec.model_fields))
    for position, baseline in enumerate(spec.references):
        path: Path = ("baselines", position)
        for key in baseline.set:
            if key == "fisher.record" or (key == "freeze.follow" and baseline.is_matched):
                continue
            if key not in fields:
                near = nearest(key, fields)
                why = FIXED.get(key) or (f"did you mean {near}?" if near else "give the dotted key of a field, such as freeze.threshold")
                yield (*path, "set", key), None, f"cannot be set for a baseline: {why}"
                break
        else:
            yield from _baseline_values(path, baseline, run)


def _baseline_values(path: Path, baseline: BaselineSpec, run: Mapping[str, Any]) -> Iterator[Finding]:
    changed = substitute(run, baseline.changes)
    try:
        RunSpec.model_validate_json(json.dumps(changed))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        field = field_path(item["loc"])
        yield path, shorten(baseline.name), f"{dotted(field) or 'the run'} {message(item, field, changed)}"
        return
    if baseline.name in POLICIES and changed["freeze"]["policy"] != baseline.name:
        yield path, shorten(baseline.name), f"is the name of another policy than {changed['freeze']['policy']}: choose another name"


def _metrics(data: Mapping[str, Any]) -> Iterator[Finding]:
    task = data.get("task", {"name": "crack_segmentation"})
    name = task.get("name") if isinstance(task, dict) else None
    known = TASK_METRICS.get(name) if isinstance(name, str) else None
    if known is None:
        return
    objectives = data.get("objectives")
    for i, objective in enumerate(objectives if isinstance(objectives, list) else []):
        yield from _metric(("objectives", i), objective, known)
    yield from _metric(("scheduler",), data.get("scheduler"), known)


def _metric(path: Path, section: Any, known: Mapping[str, str]) -> Iterator[Finding]:
    metric = section.get("metric") if isinstance(section, dict) else None
    if not isinstance(metric, str) or not metric.startswith("val/"):
        return
    better = known.get(metric.removeprefix("val/"))
    if better is None:
        names = [f"val/{name}" for name in known]
        near = nearest(metric, names)
        hint = f"; did you mean {near}?" if near else ""
        yield (*path, "metric"), shorten(metric), f"must be one of {', '.join(names)}{hint}"
    elif section.get("direction") in ("maximize", "minimize") and section["direction"] != better:
        yield (*path, "direction"), section["direction"], f"must be {better} for {metric}"


def _between(spec: StudySpec) -> Iterator[Finding]:
    if spec.freeze.policy == "random_matched":
        yield ("freeze", "policy"), spec.freeze.policy, _RANDOM_MATCHED
    if spec.scheduler.name != "none" and spec.scheduler.grace_steps > spec.train.steps:
        path = ("scheduler", "grace_steps")
        yield path, shorten(spec.scheduler.grace_steps), f"must be at most train.steps = {spec.train.steps}"
    for key, distribution in spec.search.items():
        choices = getattr(distribution, "choices", [])
        repeated = sorted({shorten(value) for i, value in enumerate(choices) if value in choices[:i]})
        if repeated:
            yield ("search", key, "choices"), None, f"lists {', '.join(repeated)} more than once"
