"""What a search must satisfy as a whole: conditions that can hold, and a sampler that can draw from the space."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fat_ray.spec.base import nearest
from fat_ray.spec.baseline import BaselineSpec
from fat_ray.spec.condition import Condition, in_order
from fat_ray.spec.path import Path, shorten
from fat_ray.spec.run import REPLAYED
from fat_ray.spec.space import Choice, Distribution, grid_size, lookup, num_values, values
from fat_ray.spec.study import StudySpec

Finding = tuple[Path, str | None, str]
"""Path, value as shown, and what is wrong."""

MAX_GRID = 10_000
"""Settings of the largest grid; a sampler has to go through them before each trial."""
_MAX_BRANCHES = 100
"""Combinations of other fields that are tried to see whether a conditional value is possible at all."""


def branches(search: Mapping[str, Distribution], run: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Values of other fields under which a parameter is suggested; empty if it never is.

    Args:
        search: The search space, whose conditions are right.
        run: The base run's plain data.
        key: The parameter.
    """
    condition = search[key].condition
    if condition is None:
        return [{}]
    field, found = condition.field, []
    if field in search:
        allowed = [value for value in values(search[field])[:_MAX_BRANCHES] if condition.holds(value)]
        found = [{**outer, field: value} for outer in branches(search, run, field) for value in allowed]
    if field not in search or search[field].condition is not None:
        found += [{}] if condition.holds(lookup(run, field)) else []
    return found[:_MAX_BRANCHES]


def condition_problems(spec: StudySpec, known: Mapping[str, Any], unfit: Callable[[str, Any], str | None]) -> Iterator[Finding]:
    """What is wrong with the conditions.

    Args:
        spec: The study.
        known: All fields of its run.
        unfit: Says why a field cannot have a value, or None.
    """
    conditions = {key: given.condition for key, given in spec.search.items()}
    for key, condition in conditions.items():
        if condition is not None and (wrong := _wrong(condition, spec, known, unfit)) is not None:
            yield ("search", key, "when"), shorten(spec.search[key].when), wrong
    try:
        in_order(conditions)
    except ValueError as error:
        first = next(key for key, condition in conditions.items() if condition is not None and f"{key} -> " in str(error))
        yield ("search", first, "when"), shorten(spec.search[first].when), str(error)


def _wrong(condition: Condition, spec: StudySpec, known: Mapping[str, Any], unfit: Callable[[str, Any], str | None]) -> str | None:
    field, given = condition.field, spec.search.get(condition.field)
    if field not in known:
        near = nearest(field, known)
        return f"no field of a run has the name {field}; {f'did you mean {near}?' if near else 'give a dotted key such as freeze.policy'}"
    if given is not None and num_values(given) is None:
        return f"{field} takes any real number between two; a condition needs a categorical or an int, or a float with step"
    if given is None and "preset" in spec.search and field.partition(".")[0] in ("fisher", "drift", "freeze"):
        return f"{field} may change with preset, which is searched: make it depend on preset"
    for value in condition.values:
        if given is not None and not any(Condition(field, "in", (value,)).holds(other) for other in values(given)):
            return f"{shorten(value)} is not among the values that {field} takes in the search"
        if given is None and (wrong := unfit(field, value)) is not None:
            return f"{field} {wrong}"
    return None


def observers(spec: StudySpec) -> list[BaselineSpec]:
    """The baselines that record drift and freeze nothing, else alike to the base run: what a search with a warm start can replay."""
    base = {"freeze.policy": spec.freeze.policy, "fisher.record": spec.fisher.record}
    found = []
    for baseline in spec.references:
        changed = {**base, **baseline.changes}
        if (changed["freeze.policy"], changed["fisher.record"]) == ("none", "always") and baseline.changes.keys() <= {*base, *REPLAYED}:
            found.append(baseline)
    return found


def _warm_start_problems(spec: StudySpec) -> Iterator[Finding]:
    """Why the first trials cannot be chosen by a replay."""
    if spec.warm_start == "none":
        return
    path = ("search", "warm_start")
    if spec.sampler.name not in WARMED:
        yield path, "replay", f"is for {', '.join(WARMED)}, whose first trials are drawn at random, not for sampler {spec.sampler.name}"
    if "preset" in spec.search:
        yield path, "replay", "cannot foretell presets, which change how drift is measured; remove preset from the search"
    if not spec.search.keys() & set(REPLAYED):
        yield path, "replay", f"needs one of {', '.join(REPLAYED)} among what is searched"
    observer = next(iter(observers(spec)), None)
    if observer is None:
        yield path, "replay", f"needs a baseline that records drift and freezes nothing, such as {_OBSERVER}"
        return
    window, searched = observer.changes.get("fisher.every", spec.fisher.every), spec.search.get("fisher.every")
    wanted = [spec.fisher.every] if searched is None else values(searched)
    if any(int(str(value)) % int(str(window)) for value in wanted):
        yield path, "replay", f"needs values of fisher.every that are multiples of {window}, the window of baseline {observer.name}"


_OBSERVER = "{name: observed, policy: none, set: {fisher.record: always}}"
WARMED = ("tpe", "gp", "nsga2", "nsga3")
"""Samplers that begin with trials at random, and learn from them."""


def sampler_problems(spec: StudySpec) -> Iterator[Finding]:
    """What the sampler cannot do with this space and these objectives, conditions being right."""
    yield from _warm_start_problems(spec)
    run = spec.model_dump(mode="json")
    if spec.search and not any(branches(spec.search, run, key) for key in spec.search):
        yield ("search",), None, "no parameter can ever be suggested: no condition holds for the base run; change it, or remove the search"
    yield from _SAMPLERS.get(spec.sampler.name, _nothing)(spec)


def _nothing(_: StudySpec) -> Iterator[Finding]:
    return iter(())


def _grid(spec: StudySpec) -> Iterator[Finding]:
    endless = [key for key, given in spec.search.items() if num_values(given) is None]
    for key in endless:
        yield ("search", key), None, "the grid sampler needs a step, or type: categorical"
    if not endless and grid_size(spec.search) > MAX_GRID:
        yield ("sampler", "name"), "grid", f"the grid has {grid_size(spec.search)} settings, more than {MAX_GRID}; use larger steps"


def _cmaes(spec: StudySpec) -> Iterator[Finding]:
    path = ("sampler", "name")
    if len(spec.objectives) > 1:
        yield path, "cmaes", f"cmaes improves one objective, not {len(spec.objectives)}; use tpe, gp, nsga2 or nsga3"
    for key, given in spec.search.items():
        if isinstance(given, Choice) and len(given.choices) > 1:
            yield ("search", key), None, "cmaes searches numbers only; use tpe or gp, or remove this parameter"
        if given.when is not None:
            yield ("search", key, "when"), shorten(given.when), "cmaes cannot search under conditions; use tpe"
    if spec.search and sum(num_values(given) != 1 for given in spec.search.values()) < 2:
        yield path, "cmaes", "cmaes needs at least two parameters to search; use tpe or gp"


def _population(spec: StudySpec) -> Iterator[Finding]:
    population, trials = spec.sampler.population, spec.budget.trials
    if population is not None and population >= trials:
        what = f"must be less than budget.trials = {trials}: the first generation is drawn at random"
        yield ("sampler", "population"), str(population), what


_SAMPLERS: Mapping[str, Callable[[StudySpec], Iterator[Finding]]] = {
    "grid": _grid,
    "cmaes": _cmaes,
    "nsga2": _population,
    "nsga3": _population,
}
