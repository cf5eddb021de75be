"""What settings would have frozen, from the drift that one run recorded: as rows, text, JSON and CSV. docs/replay.md describes it."""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from fat_ray.errors import InputError
from fat_ray.replay import costs
from fat_ray.replay.recording import Recording
from fat_ray.replay.settings import WINDOW, Settings, settings_of
from fat_ray.replay.simulate import Schedules, coarser, decisions, replay
from fat_ray.rules import Ints
from fat_ray.spec.document import parse
from fat_ray.spec.path import shorten
from fat_ray.spec.run import REPLAYED
from fat_ray.view import text

JSON_VERSION = 1
"""Raised when a key of the JSON document changes its meaning or goes."""

MAX_SETTINGS = 200_000
DEFAULT = {"freeze.threshold": "-1.5:0.5:0.1"}
"""What is replayed when nothing is asked for."""

_RANGE = re.compile(r"\s*(-?[\d.]+)\s*:\s*(-?[\d.]+)\s*:\s*([\d.]+)\s*")
RESULTS = (
    "mean_active",
    "mean_active_fraction",
    "final_active_fraction",
    "flops",
    "flops_ratio",
    "first_freeze",
    "freezing_events",
    "frozen_groups",
)
"""What comes out, by column."""

_TITLES = ("mean\nactive", "active\nat the end", "FLOPs vs\nno freezing", "first\nfreeze", "events", "frozen\ngroups")
_STYLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "header_style": "bold"}


@dataclass(frozen=True)
class Replayed:
    """Settings and what each would have frozen.

    Attributes:
        study: Name of the study.
        recording: The run whose drift is known.
        varied: Fields that differ between the settings, or from the run's.
        frame: One row per setting: `varied`, `RESULTS` and `known_until`; results are null where they depend on drift that is not known.
        schedules: Step and active elements after it of each event that froze something, per row of the frame.
        events: All decisions, where there is one setting only.
        notes: What a reader must know.
    """

    study: str
    recording: Recording
    varied: Sequence[str]
    frame: pl.DataFrame
    schedules: Sequence[Sequence[tuple[int, int]]]
    events: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


def values_of(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Fields and the values they shall take, from texts such as ``freeze.every=[4, 8]`` or ``freeze.threshold=-1:0:0.1``.

    Raises:
        InputError: A text is none of these.
    """
    found: dict[str, list[Any]] = {}
    for given in texts:
        key, separator, written = given.partition("=")
        values = _values(written)
        if not separator or not key.strip() or not values:
            forms = "field=value, field=[value, value] or field=low:high:step, such as freeze.threshold=-1:0:0.1"
            raise InputError(f"--set {shorten(given)}: must be {forms}")
        found[key.strip()] = values
    return found


def _values(written: str) -> list[Any]:
    if (bounds := _RANGE.fullmatch(written)) is not None:
        try:
            low, high, step = map(Decimal, bounds.groups())
            number = int((high - low) / step) + 1
        except ArithmeticError:
            return []
        whole = not any("." in bound for bound in bounds.groups())
        return [int(low + step * i) if whole else float(low + step * i) for i in range(min(number, MAX_SETTINGS + 1))]
    document = parse(written)
    if document.problems or isinstance(document.data, dict) or not written.strip():
        return []
    return document.data if isinstance(document.data, list) else [document.data]


def replay_settings(study: str, recording: Recording, values: Mapping[str, Sequence[Any]]) -> Replayed:
    """Replays all combinations of values.

    Args:
        study: Name of the study.
        recording: The run whose drift is known.
        values: Fields and the values they take.

    Raises:
        InputError: There are too many combinations, or as for `settings_of`.
    """
    number = math.prod(map(len, values.values()))
    if number > MAX_SETTINGS:
        raise InputError(f"--set asks for more than {MAX_SETTINGS:,} settings: give fewer values")
    changes = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    settings = settings_of(recording.spec, changes)
    schedules = replay(recording, settings)
    return Replayed(
        study,
        recording,
        varied=list(values),
        frame=_frame(recording, settings, schedules, list(values)),
        schedules=[_schedule(recording, row) for row in schedules.frozen_at],
        events=_events(recording, settings) if number == 1 and schedules.known_until[0] == schedules.steps else [],
        notes=_notes(recording, settings, schedules),
    )


def _frame(recording: Recording, settings: Settings, schedules: Schedules, varied: Sequence[str]) -> pl.DataFrame:
    total, active = int(recording.elements.sum()), costs.mean_active(recording, schedules)
    flops = costs.flops(recording, schedules)
    never = Schedules(schedules.steps, np.full((1, len(recording.groups)), schedules.steps), schedules.known_until[:1])
    whole = costs.flops(recording, never)
    frozen = schedules.frozen_at < schedules.steps
    steps = np.sort(schedules.frozen_at, axis=1)
    starts = np.diff(steps, axis=1, prepend=-1) > 0
    columns: dict[str, Any] = {key: settings[key] for key in varied}
    columns |= {
        "mean_active": active,
        "mean_active_fraction": active / total,
        "final_active_fraction": costs.final_active(recording, schedules) / total,
        "flops": flops,
        "flops_ratio": None if flops is None or whole is None else flops / whole,
        "first_freeze": np.where(frozen.any(1), steps[:, 0], -1),
        "freezing_events": (starts & (steps < schedules.steps)).sum(1),
        "frozen_groups": frozen.sum(1),
        "known_until": schedules.known_until,
    }
    known = pl.col("known_until") == schedules.steps
    frame = pl.DataFrame(columns).with_columns(pl.col("first_freeze").replace(-1, None))
    return frame.with_columns(pl.when(known).then(pl.col(name)).alias(name) for name in RESULTS)


def _schedule(recording: Recording, frozen_at: Ints) -> list[tuple[int, int]]:
    order = np.argsort(frozen_at, kind="stable")
    steps, left = frozen_at[order], recording.elements.sum() - recording.elements[order].cumsum()
    last = np.append(np.diff(steps) > 0, values=True) & (steps < recording.steps)
    return list(zip(steps[last].tolist(), left[last].tolist(), strict=True))


def _events(recording: Recording, settings: Settings) -> list[dict[str, Any]]:
    """All decisions of one setting."""
    found, active = [], int(recording.elements.sum())
    for event, decided in enumerate(decisions(coarser(recording, int(settings[WINDOW][0])), settings)):
        freeze, tau = decided.selection.freeze[0], float(decided.selection.threshold[0])
        active -= int(recording.elements[freeze].sum())
        found.append(
            {
                "step": decided.step,
                "event": event,
                "threshold": tau if math.isfinite(tau) else None,
                "limited_by": str(decided.selection.limited_by[0]),
                "frozen_groups": int(freeze.sum()),
                "active_elements": active,
                "frozen": [recording.groups[group].name for group in np.flatnonzero(freeze).tolist()],
            }
        )
    return found


def _notes(recording: Recording, settings: Settings, schedules: Schedules) -> list[str]:
    run, notes = recording.run, []
    planned = recording.spec.train.steps
    if recording.steps < planned:
        notes.append(f"Run {run} did {recording.steps} of {planned} steps; everything here ends there.")
    if recording.freezes:
        unknown = int((schedules.known_until < schedules.steps).sum())
        notes.append(f"Run {run} froze groups itself: what {unknown} of {len(settings)} settings need of their later drift is not known.")
    notes.append(
        f"Computed from the drift of run {run}, seed {recording.seed}. Freezing changes later drift: what a setting freezes first is exact,"
        " what it freezes after that is a forecast; fat-ray compare --replay shows how far a study's forecasts were off."
    )
    if (settings[WINDOW] != recording.spec.fisher.every).any():
        notes.append(f"Drift was recorded every {recording.spec.fisher.every} steps; for other values of {WINDOW} it is approximated.")
    if recording.costs is None:
        notes.append("The records do not say what layers cost, as those older than 1.2: operations are not known.")
    return notes


def ordered(replayed: Replayed, by: str) -> list[int]:
    """Rows of the frame in the order of a column; those without a value last.

    Args:
        replayed: What was replayed.
        by: A column, with ``:desc`` for the largest first.

    Raises:
        InputError: There is no such column.
    """
    column, _, direction = by.partition(":")
    if column not in replayed.frame.columns or direction not in ("", "asc", "desc"):
        raise InputError(f"--sort {by}: must be one of {', '.join(replayed.frame.columns)}, with :desc for the largest first")
    values = replayed.frame.with_row_index("row").sort(column, descending=direction == "desc", nulls_last=True, maintain_order=True)
    return values["row"].to_list()


def as_document(replayed: Replayed, order: Sequence[int]) -> dict[str, Any]:
    """Plain JSON types; docs/replay.md describes every key."""
    recording, rows = replayed.recording, replayed.frame.rows(named=True)
    fixed = settings_of(recording.spec, [{}])
    return {
        "format": "fat_ray.replay",
        "version": JSON_VERSION,
        "study": replayed.study,
        "run": recording.run,
        "seed": recording.seed,
        "steps": recording.steps,
        "total_elements": int(recording.elements.sum()),
        "base": {key: fixed[key][0].item() for key in REPLAYED if key not in replayed.varied},
        "settings": [_entry(replayed, rows[row], row) for row in order],
        "events": list(replayed.events),
        "notes": list(replayed.notes),
    }


def _entry(replayed: Replayed, values: Mapping[str, Any], row: int) -> dict[str, Any]:
    results = {key: value for key, value in values.items() if key not in replayed.varied}
    return {"params": {key: values[key] for key in replayed.varied}, **results, "schedule": replayed.schedules[row]}


def as_json(replayed: Replayed, order: Sequence[int]) -> str:
    """`as_document` as text."""
    return json.dumps(as_document(replayed, order), allow_nan=False)


def as_csv(replayed: Replayed, order: Sequence[int]) -> str:
    """One line per setting: its fields, then what came out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(replayed.frame.columns)
    rows = replayed.frame.rows()
    writer.writerows(rows[row] for row in order)
    return out.getvalue()


def as_table(replayed: Replayed, order: Sequence[int], limit: int, width: int) -> str:
    """For a terminal: the first rows, the decisions of a single setting, and what a reader must know.

    Args:
        replayed: What was replayed.
        order: Of its rows.
        limit: Rows to show; 0: all.
        width: Of the terminal.
    """
    out = io.StringIO()
    console, rows = Console(file=out, width=width), replayed.frame.rows(named=True)
    shown = order[:limit] if limit else order
    table = Table(**_STYLE)
    for title in (*replayed.varied, *_TITLES):
        table.add_column(title, justify="right", vertical="bottom", no_wrap=True)
    for row in shown:
        table.add_row(*_cells(rows[row], replayed.varied))
    console.print(table)
    if len(shown) < len(order):
        console.print(f"{len(order) - len(shown):,} more settings: --limit 0, or --format csv", style="dim")
    if replayed.events:
        console.print(_event_table(replayed))
    for note in replayed.notes:
        console.print(note, style="dim")
    return out.getvalue().rstrip("\n")


def _cells(row: Mapping[str, Any], varied: Sequence[str]) -> list[str]:
    results = [text.percent(row["mean_active_fraction"]), text.percent(row["final_active_fraction"]), text.ratio(row["flops_ratio"])]
    return [*(text.scalar(row[key]) for key in varied), *results, *(_number(row[key]) for key in RESULTS[-3:])]


def _number(value: int | None) -> str:
    return text.DASH if value is None else str(value)


def _event_table(replayed: Replayed) -> Table:
    total = int(replayed.recording.elements.sum())
    table = Table("step", "threshold", "limited by", "frozen", "active", "which", **_STYLE)
    for event in replayed.events:
        tau = text.DASH if event["threshold"] is None else f"{event['threshold']:.4g}"
        share = text.percent(event["active_elements"] / total)
        table.add_row(str(event["step"]), tau, event["limited_by"], str(event["frozen_groups"]), share, ", ".join(event["frozen"]))
    return table
