"""What a search says of its settings, beside what came out: how large its front is, which settings matter, and which act together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fat_ray.analysis.interaction import Interaction
from fat_ray.analysis.table import Column, Row, TextRow, TextTable, TitledTable, p_text
from fat_ray.view import text


@dataclass(frozen=True)
class Importance:
    """How much each setting matters for one objective: shares that sum to 1, by dotted field, the largest first."""

    objective: str
    shares: dict[str, float]


@dataclass(frozen=True)
class SearchInsight:
    """What one study's search says.

    Attributes:
        study: Its key.
        trials: Trials of which all seeds completed.
        front: Settings on the front of this study alone.
        hypervolume: Share of the box between `ideal` and `reference` that the front dominates; None without a front.
        ideal: The best value of each objective, over all studies that are compared.
        reference: The worst value of each objective over all studies that are compared, and a tenth of their range beyond.
        best_share: The share of the best trials that importance is about.
        importances: One per objective; without shares where there were too few trials.
        interactions: Per objective, the pairs that could be judged, the strongest first.
    """

    study: str
    trials: int
    front: int
    hypervolume: float | None
    ideal: list[float]
    reference: list[float]
    best_share: float | None
    importances: list[Importance]
    interactions: dict[str, list[Interaction]]


def as_document(insights: Sequence[SearchInsight]) -> list[dict[str, Any]]:
    """The insights as plain JSON types; docs/compare.md describes every key."""
    return [asdict(insight) for insight in insights]


def sentences(insights: Sequence[SearchInsight], objectives: Sequence[str]) -> list[str]:
    """The front's size, with the corners that it is measured between; and why there is no importance where there is none."""
    said = []
    for insight in insights:
        where = f"{insight.study}: " if len(insights) > 1 else ""
        if insight.hypervolume is not None:
            ideal, corner = (
                text.listing(f"{name} {value:.4g}" for name, value in zip(objectives, point, strict=True))
                for point in (insight.ideal, insight.reference)
            )
            share = f"{100 * insight.hypervolume:.1f}\N{NO-BREAK SPACE}%"
            said.append(
                f"{where}The front of {text.count(insight.front, 'setting')} dominates {share} of the box between {ideal} (the best values)"
                f" and the reference point {corner}."
            )
        if not any(importance.shares for importance in insight.importances):
            said.append(f"{where}{text.count(insight.trials, 'completed trial')}: too few to tell which settings matter.")
    return said


def insight_tables(insights: Sequence[SearchInsight]) -> list[TitledTable]:
    """The tables about settings, of studies in which there is something to say."""
    found = []
    for insight in insights:
        where = f" of {insight.study}" if len(insights) > 1 else ""
        if any(importance.shares for importance in insight.importances):
            best = text.percent(insight.best_share)
            title = f"Which settings{where} decide whether a trial is among the best {best} (PED-ANOVA, {insight.trials} trials)"
            found.append(TitledTable(title, importance_table(insight), 0))
        if any(insight.interactions.values()):
            found.append(TitledTable(f"Which settings{where} act together", interaction_table(insight), 0))
    return found


def importance_table(insight: SearchInsight) -> TextTable:
    """One row per setting, one column per objective; the most important first."""
    names = {
        name: sum(importance.shares.get(name, 0.0) for importance in insight.importances)
        for each in insight.importances
        for name in each.shares
    }
    short = text.short_names(names)
    columns = [
        Column("setting", numeric=False, priority=0, cell=lambda row: str(row["name"])),
        *(_share_column(importance) for importance in insight.importances),
    ]
    rows: list[Row] = [{"name": short[name], "key": name} for name in sorted(names, key=lambda name: -names[name])]
    return TextTable(columns, [TextRow([column.cell(row) for column in columns], "ranked") for row in rows])


def _share_column(importance: Importance) -> Column:
    return Column(importance.objective, numeric=True, priority=1, cell=lambda row: text.percent(importance.shares.get(row["key"])))


def interaction_table(insight: SearchInsight, limit: int = 10) -> TextTable:
    """One row per pair of settings and objective, the strongest first."""
    pairs = [(objective, found) for objective, interactions in insight.interactions.items() for found in interactions]
    short = text.short_names({name for _, found in pairs for name in found.settings})
    columns = [
        Column("settings", numeric=False, priority=0, cell=lambda row: " × ".join(short[name] for name in row["found"].settings)),
        Column("objective", numeric=False, priority=0, cell=lambda row: str(row["objective"])),
        Column("share of\nvariance", numeric=True, priority=0, cell=lambda row: text.percent(row["found"].share)),
        Column("p", numeric=True, priority=2, cell=lambda row: p_text(row["found"].p)),
        Column("p\nHolm", numeric=True, priority=0, cell=lambda row: p_text(row["found"].p_holm)),
        Column("trials", numeric=True, priority=1, cell=lambda row: str(row["found"].trials)),
    ]
    rows: list[Row] = [{"objective": objective, "found": found} for objective, found in sorted(pairs, key=lambda pair: pair[1].p)[:limit]]
    return TextTable(columns, [TextRow([column.cell(row) for column in columns], "ranked") for row in rows])
