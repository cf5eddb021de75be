"""The comparison as Markdown, with all columns, and as LaTeX, with those that a paper has room for."""

import re
import sys
from collections.abc import Sequence

from fat_ray.analysis.compare import Comparison
from fat_ray.analysis.insight import SearchInsight, insight_tables
from fat_ray.analysis.render import explanations, said
from fat_ray.analysis.table import FRONT, MEAN_ACTIVE, PARTIAL, Rows, TextTable, TitledTable, tables
from fat_ray.view import text

_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    MEAN_ACTIVE: r"$\bar{N}$",
    FRONT: r"$\star$",
    PARTIAL: r"\dag{}",
    text.MINUS: r"$-$",
    text.DASH: "--",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{NO-BREAK SPACE}": "~",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "Δ": r"$\Delta$",
}
_LATEX["g_z"] = "$g_z$"
_MOST = 4  # priority of the last column that a paper shows
_SIGNS = re.compile("|".join(map(re.escape, sorted(_LATEX, key=len, reverse=True))))


def as_markdown(comparison: Comparison, rows: Rows = Rows.ALL, limit: int | None = None, insights: Sequence[SearchInsight] = ()) -> str:
    """Tables with headings, then what may be concluded, what marks and words mean, and the notes."""
    sections = [f"## {titled.title}\n\n{_markdown(titled.table)}{_hidden(titled)}" for titled in _all(comparison, rows, limit, insights)]
    lines = [*said(comparison, insights), *explanations(comparison), *comparison.notes]
    return "\n\n".join([*sections, *map(_markdown_text, lines)]) + "\n"


def as_latex(comparison: Comparison, rows: Rows = Rows.ALL, limit: int | None = None, insights: Sequence[SearchInsight] = ()) -> str:
    """Tables with captions in the style of the package booktabs, of the more important columns; sentences as comments before them."""
    lines = [*said(comparison, insights), *explanations(comparison), *comparison.notes]
    comments = "\n".join(f"% {line}" for line in ["\\usepackage{booktabs}; all columns: --format json or markdown", *lines])
    found = [_latex(titled) for titled in _all(comparison, rows, limit, insights)]
    return "\n\n".join([comments, *found]) + "\n"


def _all(comparison: Comparison, rows: Rows, limit: int | None, insights: Sequence[SearchInsight]) -> list[TitledTable]:
    return [*tables(comparison, rows, limit), *insight_tables(insights)]


def _used(table: TextTable, most: int = sys.maxsize) -> list[int]:
    """The columns that hold anything, up to a priority."""
    used = [at for at in range(len(table.columns)) if any(row.cells[at] not in ("", text.DASH) for row in table.rows)]
    used = [at for at in used if table.columns[at].priority <= most]
    return used or list(range(len(table.columns)))


def _title(title: str) -> str:
    return title.replace("\n.", ".").replace("-\n", "-").replace("\n", " ")


def _hidden(titled: TitledTable) -> str:
    return f"\n\nand {text.count(titled.hidden, 'more row')}" if titled.hidden else ""


def _markdown(table: TextTable) -> str:
    used = _used(table)
    rules = ["---:" if table.columns[at].numeric else ":---" for at in used]
    titles = [_markdown_text(_title(table.columns[at].title)) for at in used]
    rows = [[_markdown_text(row.cells[at]) for at in used] for row in table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, rules, *rows])


def _markdown_text(cell: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", " ".join(cell.split(" ")))


def _latex(titled: TitledTable) -> str:
    table, used = titled.table, _used(titled.table, _MOST)
    alignment = "".join("r" if table.columns[at].numeric else "l" for at in used)
    titles = [_latex_text(_title(table.columns[at].title)) for at in used]
    rows = [[_latex_text(row.cells[at]) for at in used] for row in table.rows]
    body = "\n".join(f"{' & '.join(cells)} \\\\" for cells in rows)
    return (
        f"\\begin{{table}}\n\\caption{{{_latex_text(titled.title)}}}\n\\begin{{tabular}}{{{alignment}}}\n\\toprule\n"
        f"{' & '.join(titles)} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}"
    )


def _latex_text(cell: str) -> str:
    return _SIGNS.sub(lambda match: _LATEX[match.group()], cell)
