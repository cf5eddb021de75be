"""The search space: distributions as Optuna knows them, and a trial's values put into the run."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from fat_ray.errors import Problem, SpecError
from fat_ray.spec.check import substitute
from fat_ray.spec.condition import suggest
from fat_ray.spec.run import RunSpec, without_preset
from fat_ray.spec.space import Distribution, FloatRange, IntRange, lookup
from fat_ray.spec.study import as_json


def optuna_space(search: Mapping[str, Distribution]) -> dict[str, BaseDistribution]:
    """The distributions as Optuna knows them, by dotted key, conditions aside."""
    return {key: _distribution(distribution) for key, distribution in search.items()}


def suggest_params(asked: optuna.Trial, search: Mapping[str, Distribution], run: RunSpec) -> dict[str, Any]:
    """Lets the trial's sampler choose the parameters whose conditions hold; the others keep the base run's value.

    Args:
        asked: The trial as Optuna knows it.
        search: The search space.
        run: The base run.

    Returns:
        Dotted keys and values of the parameters that were suggested.
    """
    data, space = as_json(run), optuna_space(search)
    conditions = {key: given.condition for key, given in search.items()}
    return suggest(conditions, lambda key: lookup(data, key), lambda key: _draw(asked, key, space[key]))


def _draw(asked: optuna.Trial, key: str, given: BaseDistribution) -> Any:
    match given:
        case FloatDistribution():
            return asked.suggest_float(key, given.low, given.high, step=given.step, log=given.log)
        case IntDistribution():
            return asked.suggest_int(key, given.low, given.high, step=given.step, log=given.log)
        case CategoricalDistribution():
            return asked.suggest_categorical(key, given.choices)
    raise AssertionError(given)


def _distribution(given: Distribution) -> BaseDistribution:
    if isinstance(given, FloatRange):
        high = given.high if given.step is None else _on_grid(given.low, given.high, given.step)
        return FloatDistribution(given.low, high, log=given.log, step=given.step)
    if isinstance(given, IntRange):
        return IntDistribution(given.low, given.high - (given.high - given.low) % given.step, log=given.log, step=given.step)
    return CategoricalDistribution(given.choices)


def _on_grid(low: float, high: float, step: float) -> float:
    """The last point of the grid, in decimal arithmetic as Optuna computes it: 0.3 is three steps of 0.1."""
    first, last, width = (Decimal(str(value)) for value in (low, high, step))
    return float(first + (last - first) // width * width)


def with_params(run: RunSpec, params: Mapping[str, Any]) -> RunSpec:
    """The run with the values of a trial. A preset among them brings its fields, but for those that the study sets itself.

    Args:
        run: The base run of the study.
        params: Dotted keys and values.

    Raises:
        SpecError: The values do not go together.
    """
    base = without_preset(as_json(run)) if "preset" in params else as_json(run)
    try:
        return RunSpec.model_validate_json(json.dumps(substitute(base, params))) if params else run
    except ValidationError as error:
        problems = [Problem(".".join(map(str, item["loc"])), None, item["msg"]) for item in error.errors()]
        raise SpecError("a suggested setting", problems) from error
