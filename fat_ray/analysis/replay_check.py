"""How far real schedules were from those that a replay foretold: `fat-ray compare --replay`."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from fat_ray.errors import InputError
from fat_ray.records.manifest import read_manifest
from fat_ray.records.reader import read_table, run_start, runs
from fat_ray.replay import costs
from fat_ray.replay.recording import Recording, frozen_at, spec_of
from fat_ray.replay.reference import locate, reference, references
from fat_ray.replay.settings import WINDOW, differing, settings_of, unknown_fields
from fat_ray.replay.simulate import Schedules, replay
from fat_ray.rules import Bools, Ints
from fat_ray.view import text

JSON_VERSION = 1
"""Raised when a key of the JSON document changes its meaning or goes."""


@dataclass(frozen=True)
class Foretold:
    """A run, and what was foretold of it.

    Attributes:
        study: Name of its study.
        run: Its id.
        seed: Its seed.
        reference: The run whose drift was replayed; of the same seed, where there is one.
        exact: Whether what it freezes first must come out: seed and window are those of the reference.
        params: What differs from the reference.
        steps: Steps over which both are compared, all that the run did.
        real: N̄ of the run, as a fraction of all elements.
        foretold: The same of the replay.
        real_final: Fraction that is active at the end.
        foretold_final: The same of the replay.
        first_freeze: Step at which the run froze something first; None if it never did.
        first_difference: First step after which not the same groups are frozen; None if there is none.
        begins_alike: Whether what one of both froze first was frozen then in both.
        jaccard: Groups frozen at the end in both, over those frozen in either; 1 where neither froze any.
        flops_ratio: Foretold floating point operations over real ones; None where the records do not say.
    """

    study: str
    run: str
    seed: int
    reference: str
    exact: bool
    params: Mapping[str, Any]
    steps: int
    real: float
    foretold: float
    real_final: float
    foretold_final: float
    first_freeze: int | None
    first_difference: int | None
    begins_alike: bool
    jaccard: float
    flops_ratio: float | None


@dataclass(frozen=True)
class Check:
    """Runs of some studies beside what was foretold of them.

    Attributes:
        runs: One entry per run that could be foretold.
        skipped: Study, run and reason of Fisher-drift runs that could not be.
    """

    runs: Sequence[Foretold]
    skipped: Sequence[tuple[str, str, str]]


def check(places: Sequence[Path]) -> Check:
    """Foretells Fisher-drift runs from a run of the same study that froze nothing.

    Args:
        places: Studies' directories, or ``<directory>/<run>`` for one run.

    Raises:
        InputError: A study has no run that recorded drift and froze nothing.
        RecordError: Records cannot be read.
    """
    found, skipped = list[Foretold](), list[tuple[str, str, str]]()
    for directory, chosen in map(locate, places):
        study = read_manifest(directory).name
        known = list(references(directory)) or [reference(directory)]  # which says what is missing
        for run in runs(directory) if chosen is None else [chosen]:
            if run in {recording.run for recording in known} or run_start(directory, run).spec["freeze"]["policy"] != "fisher_drift":
                continue
            try:
                found.append(_foretell(study, directory, run, known))
            except InputError as error:
                skipped.append((study, run, str(error)))
    return Check(found, skipped)


def _foretell(study: str, directory: Path, run: str, known: Sequence[Recording]) -> Foretold:
    """One run beside its replay.

    Raises:
        InputError: It cannot be foretold.
    """
    start = run_start(directory, run)
    spec = spec_of(start)
    source = next((recording for recording in known if recording.seed == start.seed), known[0])
    change = differing(source.spec, spec)
    if unknown := unknown_fields(change):
        raise InputError(f"{', '.join(unknown)} differ from those of {source.run}, so its drift may have been another from the start")
    if list(source.groups) != list(start.groups):
        raise InputError(f"its groups are not those of {source.run}")
    steps = min(read_table(directory, "steps", run).num_rows, source.steps)
    if not steps:
        raise InputError("it did no step")
    real = np.minimum(frozen_at(directory, run, len(source.groups), never=steps), steps)
    expected = np.minimum(replay(source, settings_of(source.spec, [change])).frozen_at[0], steps)
    both = Schedules(steps, np.stack([real, expected]), np.full(2, steps))
    active, final = costs.mean_active(source, both), costs.final_active(source, both)
    flops, counted = costs.flops(source, both), float(read_table(directory, "steps", run)["flops"].to_numpy()[:steps].sum())
    total = int(source.elements.sum())
    first, difference = int(both.frozen_at.min()), _first(np.where(real == expected, steps, both.frozen_at.min(0)), steps)
    return Foretold(
        study=study,
        run=run,
        seed=start.seed,
        reference=source.run,
        exact=source.seed == start.seed and WINDOW not in change,
        params=change,
        steps=steps,
        real=float(active[0]) / total,
        foretold=float(active[1]) / total,
        real_final=int(final[0]) / total,
        foretold_final=int(final[1]) / total,
        first_freeze=_first(real, steps),
        first_difference=difference,
        begins_alike=difference is None or difference > first,
        jaccard=_jaccard(real < steps, expected < steps),
        flops_ratio=None if flops is None else float(flops[1]) / counted,
    )


def _first(frozen: Ints, steps: int) -> int | None:
    first = int(frozen.min())
    return first if first < steps else None


def _jaccard(one: Bools, other: Bools) -> float:
    return float((one & other).sum() / (one | other).sum()) if (one | other).any() else 1.0


def _rank_correlation(pairs: Sequence[Foretold]) -> float | None:
    """Spearman's, of foretold and real N̄; None for fewer than three runs or where one of both never changes."""
    real, expected = [pair.real for pair in pairs], [pair.foretold for pair in pairs]
    if len(pairs) < 3 or len(set(real)) == 1 or len(set(expected)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(real, expected).statistic)


def summary(found: Check) -> list[str]:
    """What the comparison says, in sentences."""
    if not found.runs:
        return ["There is no run with policy fisher_drift that could be foretold."]
    off = [abs(pair.foretold - pair.real) for pair in found.runs]
    whole = sum(pair.first_difference is None for pair in found.runs)
    first = [pair.begins_alike for pair in found.runs if pair.exact]
    of_those = f"of {text.count(len(first), 'run')} with the seed and window of the reference"
    alike = median(pair.jaccard for pair in found.runs)
    lines = [
        f"{text.count(len(off), 'run')}: mean active fractions were off by {_points(median(off))} (median), {_points(max(off))} at most.",
        f"{whole} of {len(off)} schedules came out as foretold to their end.",
        *([f"What was frozen first came out as foretold in {sum(first)} {of_those}."] if first else []),
        f"Of the groups frozen at the end in one or the other, {text.percent(alike)} in the median were frozen in both.",
    ]
    if (correlation := _rank_correlation(found.runs)) is not None:
        lines.append(f"Rank correlation of foretold and real mean active fractions: {correlation:.2f}.")
    return [*lines, *(f"{study}: {run} was left out: {reason}." for study, run, reason in found.skipped)]


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def as_json(found: Check) -> str:
    """The comparison as JSON; docs/replay.md describes every key."""
    document = {
        "format": "fat_ray.replay_check",
        "version": JSON_VERSION,
        "runs": [asdict(pair) for pair in found.runs],
        "skipped": [{"study": study, "run": run, "reason": reason} for study, run, reason in found.skipped],
        "rank_correlation": _rank_correlation(found.runs),
        "summary": summary(found),
    }
    return json.dumps(document, indent=2, allow_nan=False)


def as_csv(found: Check) -> str:
    """One line per run; what differs from the reference as columns `params.<field>`."""
    keys = list(dict.fromkeys(key for pair in found.runs for key in pair.params))
    names = [name for name in Foretold.__dataclass_fields__ if name != "params"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *(f"params.{key}" for key in keys)])
    for pair in found.runs:
        writer.writerow([*(getattr(pair, name) for name in names), *(pair.params.get(key) for key in keys)])
    return out.getvalue()


def as_table(found: Check, width: int) -> str:
    """For a terminal: a row per run, then the summary."""
    out = io.StringIO()
    console = Console(file=out, width=width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for title in ("run", "reference", *_TITLES):
        table.add_column(title, justify="left" if title in ("run", "reference") else "right", vertical="bottom", no_wrap=True)
    for pair in found.runs:
        table.add_row(pair.run, pair.reference, *_cells(pair))
    if found.runs:
        console.print(table)
    for line in summary(found):
        console.print(line)
    return out.getvalue().rstrip("\n")


_TITLES = (
    "mean active\nforetold",
    "\nreal",
    "at the end\nforetold",
    "\nreal",
    "first\nfreeze",
    "first\ndifference",
    "frozen\nin both",
    "FLOPs foretold\nvs real",
)


def _cells(pair: Foretold) -> list[str]:
    shares = [text.percent(value) for value in (pair.foretold, pair.real, pair.foretold_final, pair.real_final)]
    steps = [text.DASH if step is None else str(step) for step in (pair.first_freeze, pair.first_difference)]
    return [*shares, *steps, text.percent(pair.jaccard), text.ratio(pair.flops_ratio)]
