"""Which runs are compared, and in which order they are shown: ``--where "freeze.threshold < 0"`` and ``--sort test_last:desc``."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import polars as pl

from fat_ray.errors import InputError
from fat_ray.spec.document import parse
from fat_ray.spec.path import shorten

_FORM = re.compile(r"\s*([A-Za-z_][\w./-]*)\s*(==|!=|<=|>=|<|>|\bin\b)\s*(\S.*?)\s*", re.DOTALL)
_EXPECTED = "must be field == value, !=, <, <=, >, >= or field in [value, value], such as freeze.threshold < 0 or status == completed"
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {"==": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
_SPEC = "spec:"


@dataclass(frozen=True)
class Condition:
    """A comparison of a field with a value, or with several for `in`."""

    field: str
    operator: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Order:
    """By which field rows are shown; rows without a value come last."""

    field: str
    descending: bool = False


def parse_condition(text: str) -> Condition:
    """What stands after ``--where``.

    Raises:
        InputError: It is no condition; the message says what would be right.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(f"--where {shorten(text)}: {_EXPECTED}")
    field, operator, written = match.groups()
    value = parse(written)
    listed = isinstance(value.data, list)
    values = tuple(value.data) if listed else (value.data,)
    orders = operator in ("<", "<=", ">", ">=")
    if value.problems or listed != (operator == "in") or any(isinstance(item, dict | list) for item in values):
        raise InputError(f"--where {shorten(text)}: {_EXPECTED}; {shorten(written)} does not fit {operator}")
    if orders and not isinstance(values[0], int | float):
        raise InputError(f"--where {shorten(text)}: {operator} compares numbers; {shorten(written)} is none")
    return Condition(field, operator, values)


def parse_order(text: str) -> Order:
    """What stands after ``--sort``: a field, or field:desc, or field:asc.

    Raises:
        InputError: It ends in something else.
    """
    field, _, direction = text.partition(":")
    if direction not in ("", "asc", "desc") or not field:
        raise InputError(f"--sort {shorten(text)}: must be a field, field:asc or field:desc, such as test_last:desc")
    return Order(field, descending=direction == "desc")


@dataclass(frozen=True)
class Fields:
    """The fields that conditions and orders may name: columns of the runs, and fields of their specifications.

    Attributes:
        columns: Names of the columns.
        specs: Resolved specifications of the studies.
        aliases: Further names of columns, such as ``test/f1``.
    """

    columns: Sequence[str]
    specs: Sequence[Mapping[str, Any]]
    aliases: Mapping[str, str]

    def column(self, field: str, option: str) -> str:
        """The column of the runs that holds a field.

        Args:
            field: As it was given.
            option: Where it was given, for the message.

        Raises:
            InputError: There is no such field; the message names some that are alike.
        """
        if field in self.columns:
            return field
        if field in self.aliases:
            return self.aliases[field]
        if any(_holds(spec, field) for spec in self.specs):
            return f"{_SPEC}{field}"
        known = [*self.columns, *self.aliases, *(path for spec in self.specs for path in _paths(spec))]
        close = get_close_matches(field, known, n=3)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"there are {', '.join(self.columns)}, and the fields of a run's specification"
        )
        raise InputError(f"{option} {shorten(field)}: there is no such field; {hint}")


def spec_columns(columns: Iterable[str]) -> list[pl.Expr]:
    """The fields of specifications among some columns, taken from `spec_json`: text, null where a run has no such field."""
    fields = sorted({column.removeprefix(_SPEC) for column in columns if column.startswith(_SPEC)})
    return [pl.col("spec_json").str.json_path_match(f"$.{field}").alias(f"{_SPEC}{field}") for field in fields]


def matching(runs: pl.DataFrame, condition: Condition, column: str) -> pl.DataFrame:
    """The runs for which a condition on a column holds; a value that is not known satisfies ``!=`` only.

    Raises:
        InputError: The column cannot be compared with the value.
    """
    kind = runs.schema[column]
    values = condition.values
    if kind == pl.String and not column.startswith(_SPEC) and any(isinstance(value, bool | int | float) for value in values):
        raise InputError(f"--where {condition.field}: it holds words, and {shorten(values[0])} is none")
    if kind.is_numeric() and any(isinstance(value, str | bool) for value in values):
        raise InputError(f"--where {condition.field}: it holds numbers, and {shorten(values[0])} is none")
    if condition.operator == "in":
        return runs.filter(pl.any_horizontal([_holds_for(column, "==", value) for value in values] or [pl.lit(value=False)]))
    return runs.filter(_holds_for(column, condition.operator, values[0]))


def _holds_for(column: str, operator: str, value: Any) -> pl.Expr:
    found = pl.col(column)
    if value is None:
        return found.is_null() if operator == "==" else found.is_not_null()
    if isinstance(value, bool) and column.startswith(_SPEC):
        value = "true" if value else "false"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = found.cast(pl.Float64, strict=False)
    compared: pl.Expr = _OPERATORS[operator](found, value)
    return compared.fill_null(value=operator == "!=")


def sorted_by(frame: pl.DataFrame, column: str, *, descending: bool) -> pl.DataFrame:
    """The rows by a column, by number where it holds any; those without a value last, equal ones in the order in which they stood."""
    key = pl.col(column)
    if frame.schema[column] == pl.String:
        numbers = frame[column].cast(pl.Float64, strict=False)
        key = key.cast(pl.Float64, strict=False) if numbers.null_count() == frame[column].null_count() else key
    return frame.sort(key, descending=descending, nulls_last=True, maintain_order=True)


def _holds(spec: object, field: str) -> bool:
    for part in field.split("."):
        if not isinstance(spec, Mapping) or part not in spec:
            return False
        spec = spec[part]
    return not isinstance(spec, Mapping)


def _paths(spec: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted fields of a specification that hold a value."""
    found = []
    for key, value in spec.items():
        found += _paths(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return found
