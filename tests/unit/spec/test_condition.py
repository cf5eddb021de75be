"""Conditions: what is one, when it holds, and in which order conditional parameters are drawn."""

from itertools import permutations
from typing import Any

import pytest

from fat_ray.spec.condition import Condition, in_order, parse_condition, suggest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("freeze.policy == fisher_drift", Condition("freeze.policy", "in", ("fisher_drift",))),
        ("freeze.policy!='none'", Condition("freeze.policy", "!=", ("none",))),
        ("a.b in [x, 3, true, null]", Condition("a.b", "in", ("x", 3, True, None))),
        ("  a ==  0.5 ", Condition("a", "in", (0.5,))),
    ],
)
def test_conditions_are_read(text: str, expected: Condition) -> None:
    assert parse_condition(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a", "a = b", "a == ", "== b", "a in b", "a == [b]", "a in []", "a != [b]", "a in [[b]]", "a < 3", "a == {b: c}"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be field == value"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("a == 1", 1, True),
        ("a == 1", 1.0, True),
        ("a == 1", True, False),
        ("a == true", 1, False),
        ("a != x", "y", True),
        ("a != x", "x", False),
        ("a in [x, null]", None, True),
        ("a in [x, y]", "z", False),
    ],
)
def test_conditions_hold(text: str, value: Any, expected: bool) -> None:
    assert parse_condition(text).holds(value) is expected


CHAIN = {"c": parse_condition("b == 2"), "b": parse_condition("a == 1"), "a": None, "z": parse_condition("fixed == yes")}


@pytest.mark.parametrize("order", list(permutations(CHAIN)))
def test_each_parameter_comes_after_what_its_condition_asks_for(order: tuple[str, ...]) -> None:
    found = in_order({key: CHAIN[key] for key in order})
    assert sorted(found) == sorted(order)
    assert found.index("a") < found.index("b") < found.index("c")


def test_a_circle_is_shown() -> None:
    circle = {"a": parse_condition("b == 1"), "b": parse_condition("c == 1"), "c": parse_condition("a == 1")}
    with pytest.raises(ValueError, match="a -> b -> c -> a"):
        in_order(circle)
    with pytest.raises(ValueError, match="x -> x"):
        in_order({"x": parse_condition("x == 1")})


@pytest.mark.parametrize(
    ("drawn", "base", "expected"),
    [
        ({"a": 1, "b": 2, "c": 5, "z": 0}, {"fixed": "no"}, {"a": 1, "b": 2, "c": 5}),
        ({"a": 1, "b": 3, "c": 5, "z": 0}, {"fixed": "yes"}, {"z": 0, "a": 1, "b": 3}),
        ({"a": 0, "b": 2, "c": 5, "z": 0}, {"fixed": "no", "b": 9}, {"a": 0}),
        ({"a": 0, "b": 9, "c": 5, "z": 0}, {"fixed": "no", "b": 2}, {"a": 0, "c": 5}),  # b keeps its base value, which c asks for
    ],
)
def test_only_what_is_active_is_drawn(drawn: dict[str, Any], base: dict[str, Any], expected: dict[str, Any]) -> None:
    asked: list[str] = []

    def draw(key: str) -> Any:
        asked.append(key)
        return drawn[key]

    assert suggest(CHAIN, base.__getitem__, draw) == expected
    assert sorted(asked) == sorted(expected)
