import polars as pl
import pytest

from fat_ray.analysis.query import Fields, matching, parse_condition, parse_order, sorted_by, spec_columns
from fat_ray.errors import InputError

RUNS = pl.DataFrame(
    {
        "run": ["a", "b", "c"],
        "status": ["completed", "pruned", "completed"],
        "test_last": [0.5, None, 0.7],
        "partial": [False, True, False],
        "spec_json": [
            '{"freeze": {"threshold": -0.5, "policy": "none", "on": true}}',
            '{"freeze": {"threshold": 0.25, "policy": "lora", "on": false}}',
            '{"freeze": {"policy": "none"}}',
        ],
    }
)
SPEC = {"freeze": {"threshold": 0.0, "policy": "none", "on": True}, "train": {"steps": 3}}
FIELDS = Fields(["run", "status", "test_last", "partial"], [SPEC], {"test/f1": "test_last"})


def found(text: str) -> list[str]:
    condition = parse_condition(text)
    column = FIELDS.column(condition.field, "--where")
    return matching(RUNS.with_columns(spec_columns([column])), condition, column)["run"].to_list()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("freeze.threshold < 0", ["a"]),
        ("freeze.threshold >= -0.5", ["a", "b"]),
        ("freeze.threshold == 0.25", ["b"]),
        ("freeze.threshold != 0.25", ["a", "c"]),
        ("freeze.threshold == null", ["c"]),
        ("freeze.threshold in [0.25, -0.5]", ["a", "b"]),
        ("freeze.policy == none", ["a", "c"]),
        ("freeze.policy in [lora, bitfit]", ["b"]),
        ("freeze.on == true", ["a"]),
        ("status==completed", ["a", "c"]),
        ("status in []", []),
        ("test_last > 0.6", ["c"]),
        ("test/f1 <= 0.5", ["a"]),
        ("test_last != 0.5", ["b", "c"]),
        ("partial == true", ["b"]),
    ],
)
def test_conditions(text: str, expected: list[str]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("freeze.threshold", "must be field == value"),
        ("freeze.threshold ~ 3", "must be field == value"),
        ("freeze.threshold < low", "compares numbers; low is none"),
        ("freeze.threshold in 3", "does not fit in"),
        ("freeze.threshold == [3]", "does not fit =="),
        ("freeze.treshold < 0", "there is no such field; did you mean freeze.threshold"),
        ("freeze < 0", "no such field"),
        ("zzz == 1", "there are run, status"),
        ("status == 3", "holds words, and 3 is none"),
        ("test_last == high", "holds numbers, and high is none"),
    ],
)
def test_wrong_conditions_are_named(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        found(text)
    assert str(caught.value).startswith("--where ")


def test_orders() -> None:
    assert parse_order("test_last").descending is False
    assert parse_order("test_last:asc").descending is False
    order = parse_order("test/f1:desc")
    assert (order.field, order.descending) == ("test/f1", True)
    for wrong in ("test_last:down", ":desc", ""):
        with pytest.raises(InputError, match="field:desc"):
            parse_order(wrong)


def test_rows_without_a_value_come_last_in_both_directions() -> None:
    assert sorted_by(RUNS, "test_last", descending=False)["run"].to_list() == ["a", "c", "b"]
    assert sorted_by(RUNS, "test_last", descending=True)["run"].to_list() == ["c", "a", "b"]


def test_numbers_of_specifications_are_ordered_as_numbers() -> None:
    frame = pl.DataFrame({"run": ["a", "b", "c"], "spec:x": ["10", "9", None]})
    assert sorted_by(frame, "spec:x", descending=False)["run"].to_list() == ["b", "a", "c"]
    words = pl.DataFrame({"run": ["a", "b"], "spec:x": ["tpe", "gp"]})
    assert sorted_by(words, "spec:x", descending=False)["run"].to_list() == ["b", "a"]
