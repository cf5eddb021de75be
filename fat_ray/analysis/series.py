"""The rows behind each chart of the report: small lists of plain values, reduced where the records are long."""

import json
from dataclasses import dataclass
from typing import Any

import polars as pl

from fat_ray.analysis.compare import FULL, Comparison
from fat_ray.analysis.read import collect, scan
from fat_ray.rules import front_ranks
from fat_ray.view import text

Rows = list[dict[str, Any]]

BEST, OTHER, FULL_KIND, MATCHED, INCOMPLETE = "best compromise", "other trials", "full fine-tuning", "random matched", "incomplete runs"
KINDS = (BEST, OTHER, FULL_KIND, MATCHED, INCOMPLETE)
"""Classes of runs that charts tell apart by colour, in the order of their legends."""

_BAND_MIN_PX, _GROUP_PX, _GAP_PX, _LABEL_PX, _MAX_HEIGHT_PX = 11.0, 4.0, 1.0, 12.0, 3200.0


@dataclass(frozen=True)
class Schedule:
    """The freeze schedule of one run, laid out from the input of the network (top) to its output.

    Attributes:
        run: Id of the run.
        bars: Two spans at most per group: y0 and y1 in pixels, from and to in steps, state, and what a tooltip shows.
        labels: Layer name by the vertical middle of its band, in whole pixels; bands too close to the one before carry none.
        height: Height of all bands, in pixels.
        events: Steps at which something froze, with how much.
        steps: Steps of the run so far.
    """

    run: str
    bars: Rows
    labels: dict[int, str]
    height: int
    events: Rows
    steps: int


def kinds(comparison: Comparison) -> dict[str, str]:
    """The class of each run, by its id."""
    best = comparison.best
    return {row["run"]: _kind(row, best["setting"] if best else "") for row in comparison.runs.iter_rows(named=True)}


def _kind(row: dict[str, Any], best: str) -> str:
    if row["partial"]:
        return INCOMPLETE
    if row["role"] == "baseline":
        return FULL_KIND if row["label"] == FULL else MATCHED
    return BEST if row["setting"] == best else OTHER


def describe_params(params_json: str) -> str:
    """The searched settings in one line."""
    params = json.loads(params_json)
    short = text.short_names(params)
    return ", ".join(f"{short[key]} {text.scalar(value)}" for key, value in params.items()) or "base settings"


def tradeoff(comparison: Comparison) -> Rows:
    """Each completed setting with its metric against its mean active parameters; `front` marks the front of these two axes."""
    best = comparison.best
    done = comparison.settings.filter(pl.col("pareto_rank").is_not_null()).drop_nulls(["val_last_mean", "mean_active_mean"])
    ranks = front_ranks(done.select("val_last_mean", "mean_active_mean").to_numpy(), [comparison.direction, "minimize"])
    return [
        {
            "setting": text.setting_name(row["setting"]),
            "kind": _kind({**row, "partial": False}, best["setting"] if best else ""),
            "active": row["mean_active_mean"],
            "value": row["val_last_mean"],
            "low": row["val_last_mean"] - (row["val_last_sd"] or 0.0),
            "high": row["val_last_mean"] + (row["val_last_sd"] or 0.0),
            "params": describe_params(row["params_json"]),
            "share": text.percent(row["mean_active_fraction_mean"]),
            "front": rank == 1,
            "seeds": row["completed"],
        }
        for row, rank in zip(done.iter_rows(named=True), ranks, strict=True)
    ]


def active_fraction(comparison: Comparison) -> Rows:
    """The active fraction of every run: its first step, every step at which it changed, and its last."""
    elements = pl.col("total_elements")
    steps = scan(comparison.studies, "steps").join(
        scan(comparison.studies, "runs").select("study", "run", "total_elements"), on=["study", "run"]
    )
    steps = steps.sort("study", "run", "step").with_columns(fraction=pl.col("active_elements") / elements)
    changed = (pl.col("fraction") != pl.col("fraction").shift(1)).over("study", "run").fill_null(value=True)
    last = (pl.col("step") == pl.col("step").max()).over("study", "run")
    frame = collect(steps.filter(changed | last).select("run", "step", "fraction"), comparison.studies)
    return _with_kind(comparison, frame)


def validation(comparison: Comparison) -> Rows:
    """The metric on the validation split at every evaluation of every run."""
    evals = scan(comparison.studies, "evals").filter((pl.col("split") == "val") & (pl.col("metric") == comparison.metric))
    frame = collect(evals.filter(pl.col("value").is_finite()).sort("run", "step").select("run", "step", "value"), comparison.studies)
    return _with_kind(comparison, frame)


def _with_kind(comparison: Comparison, frame: pl.DataFrame) -> Rows:
    known = kinds(comparison)
    params = {row["run"]: describe_params(row["params_json"]) for row in comparison.runs.iter_rows(named=True)}
    return [{**row, "kind": known[row["run"]], "params": params[row["run"]]} for row in frame.iter_rows(named=True) if row["run"] in known]


def costs(comparison: Comparison) -> Rows:
    """Training seconds and FLOPs of every run, in the order of the comparison."""
    known = kinds(comparison)
    return [
        {
            "run": row["run"],
            "kind": known[row["run"]],
            "train_s": row["train_s"],
            "train_text": text.seconds(row["train_s"]) + ("†" if row["partial"] else ""),
            "flops": row["flops"],
            "flops_text": text.quantity(row["flops"]) + ("†" if row["partial"] else ""),
        }
        for row in comparison.runs.iter_rows(named=True)
    ]


def drift(comparison: Comparison, run: str, most: int = 6) -> Rows:
    """Mean smoothed drift of the measured groups of each layer kind at every update; the rarest kinds beyond `most` are "other"."""
    groups = scan(comparison.studies, "groups").filter(pl.col("run") == run).select("group", "kind")
    updates = scan(comparison.studies, "drift").filter((pl.col("run") == run) & pl.col("smoothed").is_finite())
    frame = collect(updates.join(groups, on="group"), comparison.studies)
    common = frame["kind"].value_counts(sort=True)["kind"].head(most).to_list()
    kind = pl.when(pl.col("kind").is_in(common)).then("kind").otherwise(pl.lit("other"))
    means = frame.group_by("update", "step", kind).agg(pl.col("smoothed").mean().alias("drift"), pl.len().alias("groups"))
    return means.sort("update", "kind").to_dicts()


def events(comparison: Comparison, run: str) -> Rows:
    """The freeze events of a run that froze something."""
    frame = scan(comparison.studies, "events").filter((pl.col("run") == run) & (pl.col("frozen_groups") > 0)).sort("step")
    return collect(frame.select("step", "event", "frozen_groups", "frozen_elements"), comparison.studies).to_dicts()


def schedule(comparison: Comparison, run: str) -> Schedule | None:
    """The layout of the freeze schedule; None for a run without recorded groups or steps."""
    studies = comparison.studies
    freezes = scan(studies, "freezes").filter(pl.col("run") == run).select("group", pl.col("step").alias("frozen_at"))
    groups = collect(scan(studies, "groups").filter(pl.col("run") == run).join(freezes, on="group", how="left").sort("group"), studies)
    row = comparison.runs.row(by_predicate=pl.col("run") == run, named=True)
    if groups.is_empty() or not row["steps"]:
        return None
    bands = [
        (str(layer[0]), part) for layer, part in groups.with_columns(band=pl.col("layer").rle_id()).group_by("band", maintain_order=True)
    ]
    scale = min(1.0, _MAX_HEIGHT_PX / sum(_band_px(part.height) for _, part in bands))
    bars, labels, top, labelled = Rows(), dict[int, str](), 0.0, -_LABEL_PX
    for _, part in bands:
        height = _band_px(part.height) * scale
        bars += _band_bars(part, top, height, row["steps"])
        if top + height / 2 - labelled >= _LABEL_PX:
            labelled = top + height / 2
            labels[round(labelled)] = part["layer"][0]
        top += height
    return Schedule(run, bars, labels, round(top), events(comparison, run), row["steps"])


def _band_px(num_groups: int) -> float:
    return max(_BAND_MIN_PX, num_groups * _GROUP_PX) + _GAP_PX


def _band_bars(part: pl.DataFrame, top: float, height: float, steps: int) -> Rows:
    bars, each = Rows(), (height - _GAP_PX) / part.height
    for i, group in enumerate(part.iter_rows(named=True)):
        frozen_at = group["frozen_at"]
        shared = {
            "y0": round(top + i * each, 2),
            "y1": round(top + (i + 1) * each, 2),
            "group": group["name"],
            "layer_kind": group["kind"],
            "elements": group["elements"],
            "fate": "active to the end" if frozen_at is None else f"frozen at step {frozen_at}",
        }
        end = steps if frozen_at is None else frozen_at
        bars += [{**shared, "from": 0, "to": end, "state": "active"}] if end else []
        bars += [{**shared, "from": frozen_at, "to": steps, "state": "frozen"}] if frozen_at is not None else []
    return bars


def environments(comparison: Comparison) -> list[dict[str, Any]]:
    """What each run recorded about where it ran."""
    frame = collect(scan(comparison.studies, "runs").sort("started_at").select("environment_json"), comparison.studies)
    return [json.loads(document) for document in frame["environment_json"]]
