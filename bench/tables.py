"""Rows of a bench as Markdown, as they stand in README.md."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, digits: int = 3) -> str:
    """A table.

    Args:
        rows: Values by column; what a row does not have, or is None, stays empty.
        columns: Which, in order; None: all that any row has.
        digits: Decimals of floating point numbers.
    """
    names = list(columns or dict.fromkeys(name for row in rows for name in row))

    def shown(cell: Any) -> str:
        return "" if cell is None else f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)

    lines = [names, ["---"] * len(names), *([shown(row.get(name)) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
