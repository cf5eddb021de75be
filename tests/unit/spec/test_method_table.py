"""The table of switches in docs/method.md says what the presets really are, and leaves no field out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fat_ray.spec.run import PRESETS, RunSpec

METHOD = Path(__file__).parents[3] / "docs" / "method.md"
SECTIONS = ("fisher", "drift", "freeze")


def fields(spec: BaseModel, path: str) -> Iterator[tuple[str, str]]:
    """Dotted path and value, as JSON without quotes, of every field below a section."""
    for name in type(spec).model_fields:
        value: Any = getattr(spec, name)
        if isinstance(value, BaseModel):
            yield from fields(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", json.dumps(value).strip('"')


def written() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the presets in the head, and the values of each field."""
    table = METHOD.read_text().partition("| field |")[2].partition("\n\n")[0]
    head = [cell.strip().strip("`") for cell in table.splitlines()[0].split("|") if cell.strip()]
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert len({row[0] for row in rows}) == len(rows)
    return head, {row[0]: row[1 : 1 + len(head)] for row in rows}


def test_the_table_of_switches_holds_every_field_and_the_values_of_the_presets() -> None:
    head, rows = written()
    presets = head[: len(PRESETS)]
    assert set(presets) == set(PRESETS)
    for column, preset in enumerate(presets):
        spec = RunSpec.model_validate({"preset": preset})
        expected = dict(pair for section in SECTIONS for pair in fields(getattr(spec, section), section))
        assert {field: values[column] for field, values in rows.items()} == expected


def test_sections_that_the_code_cites_exist() -> None:
    """Module docstrings name sections by number."""
    titles = dict(re.findall(r"^## (\d+)\. (.+)$", METHOD.read_text(), flags=re.MULTILINE))
    assert "estimat" in titles["1"].lower()
    assert "released" in titles["4"].lower()
