"""How a study stands, from its records alone: safe while the study runs, right after it, and on another machine."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter

from fat_ray.analysis.compare import Comparison, Options, compare_studies
from fat_ray.analysis.read import Study, collect, open_studies, scan, tolerantly
from fat_ray.events import Status
from fat_ray.records.driver import DONE, ENDING, RUNNING, UNKNOWN, DriverReport, judge, read_report
from fat_ray.rules import running_mean
from fat_ray.spec.baseline import Baseline, as_section
from fat_ray.spec.study import num_trials
from fat_ray.view import picture as view
from fat_ray.view import text
from fat_ray.view.document import document
from fat_ray.view.picture import Picture, TrialLine

Row = dict[str, Any]


def read_status(directory: Path | str, now: datetime | None = None) -> Picture:
    """How the study in a directory stands.

    Args:
        directory: The study's directory, or its URI.
        now: The present, with a time zone; None: ask the clock.

    Raises:
        RecordError: There is no study, or its records cannot be read.
    """
    return tolerantly(open_studies([directory]), lambda studies: _picture(studies, now or datetime.now(UTC)))


def _picture(studies: list[Study], now: datetime) -> Picture:
    study, comparison = studies[0], compare_studies(studies, Options(statistics=False))
    directory = study.directory
    report = read_report(directory) if isinstance(directory, Path) else None
    total = num_trials(study.spec) if report is None else report.total
    state, detail = judge(report, directory, now) if report is not None else _unreported(study, comparison, total, now)
    return Picture(
        study=study.manifest.name,
        state=state,
        detail=detail,
        metric=f"val/{comparison.metric}",
        objectives=comparison.objectives,
        total=total,
        trials=_Lines(comparison, now, is_live=state in (RUNNING, ENDING, UNKNOWN)).all(),
        elapsed_s=_elapsed_s(comparison, report, state, now),
        warnings=[*([] if report is None else report.warnings), *study.damage],
    )


def as_json(picture: Picture, directory: Path | str) -> str:
    """The status as JSON with stable keys; docs/console.md describes them."""
    return json.dumps({**document(picture), "directory": str(directory)}, indent=2, ensure_ascii=False, allow_nan=False)


def _unreported(study: Study, comparison: Comparison, total: int, now: datetime) -> tuple[str, str]:
    """The state of a study whose driver says nothing of itself, such as that of a single run."""
    runs = comparison.runs
    if runs.height >= total * len(study.spec["seeds"]) and not (runs["status"] == "running").any():
        return DONE, ""
    newest = max((info.mtime_ns or 0 for info in study.place.files("records", recursive=True)), default=None)
    if newest is None:
        return UNKNOWN, "nothing is recorded yet"
    age = text.duration(now.timestamp() - newest / 1e9)
    return UNKNOWN, f"the newest record is {age} old; whether its process lives cannot be seen from here"


def _elapsed_s(comparison: Comparison, report: DriverReport | None, state: str, now: datetime) -> float:
    if report is not None:
        until = now if state in (RUNNING, ENDING) else datetime.fromisoformat(report.beat_at)
        return (until - datetime.fromisoformat(report.began_at)).total_seconds()
    if state == UNKNOWN:
        return (now - comparison.studies[0].manifest.created_at).total_seconds()
    return float(comparison.runs["wall_s"].sum())  # without a driver the runs came one after the other


class _Lines:
    """The trials of a comparison as lines of a picture."""

    def __init__(self, comparison: Comparison, now: datetime, *, is_live: bool) -> None:
        self._comparison, self._now, self._is_live = comparison, now, is_live
        self._studies = comparison.studies
        self._seeds: list[int] = self._studies[0].spec["seeds"]
        self._began = self._by_run(scan(self._studies, "runs").select("run", "started_at"))
        self._curves, self._shares = self._metric_curves(), self._active_shares()
        baselines = TypeAdapter(list[Baseline]).validate_python(self._studies[0].spec["baselines"])
        self._baselines = {baseline.name: baseline.shown for baseline in map(as_section, baselines)}

    def all(self) -> list[TrialLine]:
        """In the order in which they began."""
        ranked = {row["setting"]: row for row in self._comparison.settings.iter_rows(named=True)}
        groups: dict[str, list[Row]] = {}
        for row in self._comparison.runs.iter_rows(named=True):
            groups.setdefault(row["setting"], []).append(row)
        for rows in groups.values():
            rows.sort(key=lambda row: self._start(row["run"]))
        order = sorted(groups, key=lambda setting: (self._start(groups[setting][0]["run"]), setting))
        return [self._line(groups[setting], ranked[setting]) for setting in order]

    def _line(self, rows: Sequence[Row], ranked: Row) -> TrialLine:
        last = rows[-1]
        curve = running_mean([self._curves.get(row["run"], {}) for row in rows])
        best = max if self._comparison.direction == "maximize" else min
        state = self._state(rows)
        return TrialLine(
            name=_name(last),
            params=json.loads(last["params_json"]) or self._baselines.get(last["label"], {}),
            state=state,
            seeds_done=sum(row["status"] == Status.COMPLETED for row in rows),
            seeds=max(len(self._seeds), len(rows)) if last["role"] != "single" else 1,
            step=last["steps"] or 0,
            steps=last["planned_steps"],
            last=next(reversed(curve.values()), None),
            best=best(curve.values(), default=None),
            active=self._shares.get(last["run"], []),
            elapsed_s=sum(self._elapsed_s(row) for row in rows),
            reason=" ".join(last["reason"].split()) if state in view.OVER else "",
            values=None if ranked["pareto_rank"] is None else ranked["objective_means"],
            is_baseline=last["role"] == "baseline",
        )

    def _state(self, rows: Sequence[Row]) -> str:
        ended = next((row["status"] for row in rows if row["status"] not in (Status.COMPLETED, "running")), None)
        if ended is not None:
            return str(ended)
        whole = rows[-1]["status"] == Status.COMPLETED and (len(rows) >= len(self._seeds) or rows[0]["role"] == "single")
        if whole:
            return Status.COMPLETED.value
        return view.RUNNING if self._is_live else view.INTERRUPTED

    def _start(self, run: str) -> datetime:
        began: datetime = self._began[run][0][0]
        return began

    def _elapsed_s(self, row: Row) -> float:
        if row["wall_s"] is not None:
            return float(row["wall_s"])
        return (self._now - self._start(row["run"])).total_seconds() if self._is_live else row["train_s"] or 0.0

    def _metric_curves(self) -> Mapping[str, Mapping[int, float]]:
        """Run to its metric by step."""
        wanted = (pl.col("split") == "val") & (pl.col("metric") == self._comparison.metric)
        evals = scan(self._studies, "evals").filter(wanted).drop_nulls("value").sort("run", "step")
        return {run: dict(rows) for run, rows in self._by_run(evals.select("run", "step", "value")).items()}

    def _active_shares(self) -> Mapping[str, Sequence[tuple[int, float]]]:
        """Run to its share of active entries: the first step, every step at which it changed, and the last."""
        elements = scan(self._studies, "runs").select("run", "total_elements")
        share = pl.col("active_elements") / pl.col("total_elements")
        steps = scan(self._studies, "steps").join(elements, on="run").sort("run", "step").with_columns(share=share)
        changed = (pl.col("share") != pl.col("share").shift(1)).over("run").fill_null(value=True)
        last = (pl.col("step") == pl.col("step").max()).over("run")
        return self._by_run(steps.filter(changed | last).select("run", "step", "share"))

    def _by_run(self, frame: pl.LazyFrame) -> dict[str, list[Any]]:
        """Run to its rows, each without the run."""
        found: dict[str, list[Any]] = {}
        for run, *rest in collect(frame, self._studies).iter_rows():
            found.setdefault(run, []).append(tuple(rest))
        return found


def _name(row: Row) -> str:
    """The trial's name, as the driver calls it."""
    if row["role"] == "search":
        return f"t{row['trial']:04d}"
    return str(row["label"] if row["role"] == "baseline" else row["run"])
