"""Conditions of a search: `freeze.policy == fisher_drift` says when a parameter is suggested at all."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fat_ray.spec.path import shorten

_FORM = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(==|!=|\bin\b)\s*(\S.*?)\s*", re.DOTALL)
_EXPECTED = "must be field == value, field != value, or field in [value, value], such as freeze.policy == fisher_drift"


@dataclass(frozen=True)
class Condition:
    """A comparison of one field of the run with values.

    Attributes:
        field: Dotted key.
        operator: `!=`, or `in`, of which `==` is the case of one value.
        values: What the field is compared with.
    """

    field: str
    operator: Literal["in", "!="]
    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether the field's value satisfies it; `true` is not 1."""
        found = any(_same(value, other) for other in self.values)
        return found if self.operator == "in" else not found


def parse_condition(text: str) -> Condition:
    """The condition that a study file writes under `when`.

    Raises:
        ValueError: It is none; the message says what would be right.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(_EXPECTED)
    field, operator, written = match.groups()
    from fat_ray.spec.document import parse  # needs a YAML reader, without which a Freezer does

    value = parse(written)
    listed = isinstance(value.data, list)
    values = value.data if listed else [value.data]
    if value.problems or listed != (operator == "in") or not values or any(isinstance(item, dict | list) for item in values):
        raise ValueError(f"{_EXPECTED}; {shorten(written)} does not fit {operator}")
    return Condition(field, "!=" if operator == "!=" else "in", tuple(values))


def in_order(conditions: Mapping[str, Condition | None]) -> list[str]:
    """The parameters so that each comes after those that its condition asks for; otherwise as they were given.

    Raises:
        ValueError: Conditions go round in a circle, which the message shows.
    """
    ordered: list[str] = []

    def visit(key: str, path: tuple[str, ...]) -> None:
        if key in path:
            raise ValueError(f"conditions go round in a circle: {' -> '.join((*path[path.index(key) :], key))}")
        condition = conditions[key]
        if condition is not None and condition.field in conditions:
            visit(condition.field, (*path, key))
        if key not in ordered:
            ordered.append(key)

    for key in conditions:
        visit(key, ())
    return ordered


def suggest(conditions: Mapping[str, Condition | None], base: Callable[[str], Any], draw: Callable[[str], Any]) -> dict[str, Any]:
    """Draws the parameters whose conditions hold, in the order of their dependence; the others keep their base value.

    Args:
        conditions: Parameter to its condition; None: it is always drawn.
        base: The base run's value of a field.
        draw: Gives a parameter its value.

    Returns:
        Drawn parameters and their values.
    """
    params: dict[str, Any] = {}
    for key in in_order(conditions):
        condition = conditions[key]
        if condition is None or condition.holds(params[condition.field] if condition.field in params else base(condition.field)):
            params[key] = draw(key)
    return params


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
