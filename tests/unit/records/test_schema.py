from dataclasses import replace
from pathlib import Path

import pytest

from fat_ray.errors import RecordError
from fat_ray.records.schema import SCHEMA_VERSION, TABLES, check_version, columns
from tests.support.runs import body, end, resumption, start


def test_events_fill_every_column_of_every_table_with_equal_lengths() -> None:
    filled: dict[str, set[str]] = {}
    for event in [start(), resumption(), *body(), end()]:
        for table, values in columns(event, start()):
            assert len({len(column) for column in values.values()}) == 1
            filled.setdefault(table, set()).update(values)
    assert {table: names | {"run"} for table, names in filled.items()} == {table: set(schema.names) for table, schema in TABLES.items()}


def test_drift_for_another_number_of_groups_is_a_programming_error() -> None:
    drift = next(event for event in body() if hasattr(event, "update"))
    with pytest.raises(AssertionError, match="one value per group"):
        dict(columns(replace(drift, score=[None]), start()))


@pytest.mark.parametrize("version", [SCHEMA_VERSION, "1.99", "0.1"])
def test_versions_up_to_the_own_major_are_read(version: str) -> None:
    check_version("somewhere", version)


@pytest.mark.parametrize("version", ["2.0", "10.1", "", "new", "²"])
def test_newer_major_or_no_version_is_refused(version: str) -> None:
    with pytest.raises(RecordError, match="somewhere has"):
        check_version("somewhere", version)


def test_docs_name_every_table_and_column_in_its_section() -> None:
    text = (Path(__file__).parents[3] / "docs" / "records.md").read_text()
    assert f"version {SCHEMA_VERSION}" in text
    sections = dict(section.split("\n", 1) for section in text.split("\n## Tables\n")[1].split("\n## ")[0].split("\n### ")[1:])
    assert list(sections) == [f"`{table}`" for table in TABLES]
    for table, schema in TABLES.items():
        described = [line.split("|")[1].strip() for line in sections[f"`{table}`"].splitlines() if line.startswith("| `")]
        assert described == [f"`{name}`" for name in schema.names if name != "run"], table
        types = [line.split("|")[2].strip() for line in sections[f"`{table}`"].splitlines() if line.startswith("| `")]
        assert types == [str(field.type) for field in schema if field.name != "run"], table
