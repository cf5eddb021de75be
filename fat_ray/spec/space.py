"""The search space as a study file writes it: which values a field may take, and under which condition it is suggested."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from fat_ray.spec.base import Count, Positive, Strict
from fat_ray.spec.condition import Condition, in_order, parse_condition

Scalar = bool | int | float | str | None


def _is_condition(text: str) -> str:
    parse_condition(text)
    return text


class Searched(Strict):
    """What all kinds of values share."""

    when: Annotated[str, AfterValidator(_is_condition)] | None = None
    """Only suggested while this holds, such as `freeze.policy == fisher_drift` (also `!=`, and `in [a, b]`); else the field keeps
    its base value."""

    @property
    def condition(self) -> Condition | None:
        """`when`, taken apart."""
        return None if self.when is None else parse_condition(self.when)


class FloatRange(Searched):
    """A real number between `low` and `high`, both included."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self)
        return self


class IntRange(Searched):
    """An integer between `low` and `high`, both included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: Count = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self)
        return self


class Choice(Searched):
    """One of the listed values."""

    type: Literal["categorical"]
    choices: Annotated[list[Scalar], Field(min_length=1)]


def _check_range(given: FloatRange | IntRange) -> None:
    if given.low > given.high:
        raise ValueError(f"low = {given.low} is greater than high = {given.high}")
    if given.log and given.low <= 0:
        raise ValueError(f"log: true needs low > 0, not {given.low}")
    if given.log and given.step not in (None, 1):
        raise ValueError("log: true and step cannot be combined")


def _type(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind in ("float", "int", "categorical") else None


Distribution = Annotated[
    Annotated[FloatRange, Tag("float")] | Annotated[IntRange, Tag("int")] | Annotated[Choice, Tag("categorical")],
    Discriminator(
        _type,
        custom_error_type="unknown_distribution",
        custom_error_message="needs type: float, int or categorical",
    ),
]


def num_values(given: Distribution) -> int | None:
    """How many values there are; None where they are not countable."""
    match given:
        case Choice():
            return len(given.choices)
        case IntRange():
            return (given.high - given.low) // given.step + 1
        case FloatRange(step=None):
            return 1 if given.low == given.high else None
        case FloatRange():
            low, high, step = (Decimal(str(value)) for value in (given.low, given.high, given.step))
            return int((high - low) // step) + 1


def values(given: Distribution) -> list[Scalar]:
    """All values of a distribution that has countably many, in order; decimal arithmetic keeps 0.3 three steps of 0.1."""
    number = num_values(given)
    assert number is not None
    if isinstance(given, Choice):
        return list(given.choices)
    if isinstance(given, IntRange):
        return list(range(given.low, given.high + 1, given.step))
    low, step = Decimal(str(given.low)), Decimal(str(given.step or 0))
    return [float(low + step * position) for position in range(number)]


def grid_size(search: Mapping[str, Distribution]) -> int:
    """Settings of the full grid, conditions aside.

    Args:
        search: Countable distributions only.
    """
    return prod(num_values(given) or 1 for given in search.values())


def grid(search: Mapping[str, Distribution], base: Callable[[str], Any]) -> list[dict[str, Any]]:
    """All settings of a space of countable distributions, each once: a parameter whose condition does not hold has no values.

    Args:
        search: The search space.
        base: The base run's value of a field.
    """
    conditions = {key: given.condition for key, given in search.items()}
    settings: list[dict[str, Any]] = [{}]
    for key in in_order(conditions):
        condition, extended = conditions[key], []
        for setting in settings:
            if condition is None or condition.holds(setting[condition.field] if condition.field in setting else base(condition.field)):
                extended += [{**setting, key: value} for value in values(search[key])]
            else:
                extended.append(setting)
        settings = extended
    return settings


def lookup(run: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted field in a run's plain data."""
    value: Any = run
    for name in key.split("."):
        value = value[name]
    return value
