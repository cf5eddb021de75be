"""The rows behind the charts of runs and settings: small lists of plain values, reduced where the records are long."""

import json
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import polars as pl

from fat_ray.analysis.compare import FULL, Comparison
from fat_ray.analysis.read import collect, scan
from fat_ray.rules import front_ranks
from fat_ray.view import text

Rows = list[dict[str, Any]]

BEST, OTHER, FULL_KIND, BASELINE, INCOMPLETE = "best compromise", "other trials", "full fine-tuning", "other baselines", "incomplete runs"
KINDS = (BEST, OTHER, FULL_KIND, BASELINE, INCOMPLETE)
"""Classes of runs that charts tell apart by colour, in the order of their legends."""

SHOWN_SETTINGS, SHOWN_RUNS, CROWD, WINDOWS, CELLS = 30, 40, 40, 40, 400
"""Rows of a chart of settings and of runs; runs beyond which a class is drawn as a band; windows of a run's step times; groups beyond
which neighbours with one fate share a cell."""

ACTIVE, FROZEN, UNKNOWN = "active", "frozen", "frozen or thawed"
"""States of a group. The records say how many groups thawed, not which."""

MAX_HEIGHT_PX = 3200.0
_BAND_MIN_PX, _GROUP_PX, _GAP_PX, _LABEL_PX = 11.0, 4.0, 1.0, 12.0


@dataclass(frozen=True)
class Schedule:
    """The freeze schedule of one run, laid out from the input of the network (top) to its output.

    Attributes:
        run: Id of the run.
        bars: A cell per group and state that it had: y0 and y1 in pixels, from and to in steps, state, and what a tooltip shows. Beyond
            `CELLS` groups, neighbours in a layer with the same fate share one.
        labels: Layer name by the vertical middle of its band, in whole pixels; bands too close to the one before carry none.
        height: Height of all bands, in pixels.
        events: Steps at which something froze, with how much.
        steps: Steps of the run so far.
        groups: How many groups it has.
        is_merged: Whether a cell may stand for several of them.
        hidden_names: Layers without room for their names.
    """

    run: str
    bars: Rows
    labels: dict[int, str]
    height: int
    events: Rows
    steps: int
    groups: int
    is_merged: bool
    hidden_names: int

    @property
    def thaws(self) -> bool:
        """Whether groups became active again."""
        return any(event["thawed"] for event in self.events)


def kinds(comparison: Comparison) -> dict[str, str]:
    """The class of each run, by its id."""
    best = _best(comparison)
    return {row["run"]: _kind(row, best) for row in comparison.runs.iter_rows(named=True)}


def _kind(row: dict[str, Any], best: str) -> str:
    if row["partial"]:
        return INCOMPLETE
    if row["role"] == "baseline":
        return FULL_KIND if row["label"] == FULL else BASELINE
    return BEST if row["setting"] == best else OTHER


def describe_params(params_json: str) -> str:
    """The searched settings in one line."""
    params = json.loads(params_json)
    short = text.short_names(params)
    return ", ".join(f"{short[key]} {text.scalar(value)}" for key, value in params.items()) or "base settings"


def tradeoff(comparison: Comparison, cost: str = "mean_active") -> Rows:
    """Each completed setting with its metric against a cost, a column of runs; `front` marks the front of these two axes."""
    mean, best = f"{cost}_mean", _best(comparison)
    done = comparison.settings.filter(pl.col("pareto_rank").is_not_null()).drop_nulls(["val_last_mean", mean])
    ranks = front_ranks(done.select("val_last_mean", mean).to_numpy(), [comparison.direction, "minimize"])
    return [
        {
            **_setting(row, best),
            "cost": row[mean],
            "value": row["val_last_mean"],
            "low": row["val_last_mean"] - (row["val_last_sd"] or 0.0),
            "high": row["val_last_mean"] + (row["val_last_sd"] or 0.0),
            "share": text.percent(row["mean_active_fraction_mean"]),
            "front": rank == 1,
        }
        for row, rank in zip(done.iter_rows(named=True), ranks, strict=True)
    ]


def zero_shot(comparison: Comparison) -> Rows:
    """Each completed setting with its metric on data from elsewhere against that on the test split."""
    best = _best(comparison)
    done = comparison.settings.filter(pl.col("pareto_rank").is_not_null()).drop_nulls(["test_last_mean", "zero_shot_last_mean"])
    return [
        {**_setting(row, best), "test": row["test_last_mean"], "elsewhere": row["zero_shot_last_mean"]}
        for row in done.iter_rows(named=True)
    ]


def _best(comparison: Comparison) -> str:
    best = comparison.best
    return str(best["setting"]) if best else ""


def _setting(row: dict[str, Any], best: str) -> dict[str, Any]:
    return {
        "setting": text.setting_name(row["setting"]),
        "kind": _kind({**row, "partial": False}, best),
        "params": describe_params(row["params_json"]),
        "seeds": row["completed"],
    }


def seed_means(comparison: Comparison) -> tuple[Rows, Rows]:
    """The means of the settings with their intervals, and the values of the seeds behind them."""
    shown, best = _shown_settings(comparison, "n"), _best(comparison)
    means = [
        {**_setting(row, best), "mean": row["value_mean"], "low": row["value_low"], "high": row["value_high"], "n": row["n"]}
        for row in shown.iter_rows(named=True)
    ]
    runs = comparison.runs.drop_nulls("value").join(shown.select("setting"), on="setting", how="semi")
    values = runs.select("setting", "seed", "value").iter_rows()
    return means, [{"setting": text.setting_name(setting), "seed": seed, "value": value} for setting, seed, value in values]


def seed_differences(comparison: Comparison) -> Rows:
    """The mean differences to the baseline, seed by seed, with their intervals and what is concluded from them."""
    best = _best(comparison)
    return [
        {
            **_setting(row, best),
            **{part: row[f"difference_{part}"] for part in ("mean", "low", "high")},
            **{name: row[name] for name in ("pairs", "p_holm", "verdict")},
        }
        for row in _shown_settings(comparison, "pairs").iter_rows(named=True)
    ]


def _shown_settings(comparison: Comparison, counted: str) -> pl.DataFrame:
    """The first settings of which anything is known, and the baselines."""
    known = comparison.settings.filter(pl.col(counted) > 0)
    return known.filter((pl.int_range(pl.len()) < SHOWN_SETTINGS) | (pl.col("role") == "baseline"))


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


def step_time(comparison: Comparison) -> tuple[Rows, Rows]:
    """Seconds per step: the median of each window of steps, `WINDOWS` at most per run.

    Returns:
        Rows of the runs that are drawn one by one, and for each class of more than `CROWD` runs the rows of its band: the median over
        its runs, and the tenth and ninetieth percentile.
    """
    longest = int(comparison.runs["steps"].max() or 0)  # type: ignore[arg-type]
    window = max(1, -(-longest // WINDOWS))
    start = (pl.col("step") // window * window).cast(pl.Int64).alias("step")
    medians = scan(comparison.studies, "steps").filter(pl.col("step_s").is_finite()).group_by("run", start)
    frame = collect(medians.agg(pl.col("step_s").median().alias("seconds")).sort("run", "step"), comparison.studies)
    known = kinds(comparison)
    frame = frame.filter(pl.col("run").is_in(list(known)))
    frame = frame.with_columns(pl.col("run").replace_strict(known, return_dtype=pl.String).alias("kind"))
    crowds = frame.group_by("kind").agg(pl.col("run").n_unique()).filter(pl.col("run") > CROWD)["kind"].to_list()
    parts = {"low": 0.1, "seconds": 0.5, "high": 0.9}
    bands = frame.filter(pl.col("kind").is_in(crowds)).group_by("kind", "step")
    band = bands.agg(pl.len().alias("runs"), *(pl.col("seconds").quantile(at, "linear").alias(name) for name, at in parts.items()))
    lone = frame.filter(~pl.col("kind").is_in(crowds)).drop("kind")
    return _with_kind(comparison, lone), band.sort("kind", "step").to_dicts()


def costs(comparison: Comparison) -> Rows:
    """Training seconds and FLOPs of the first runs in the order of the comparison, and of the baselines."""
    known = kinds(comparison)
    shown = comparison.runs.filter((pl.int_range(pl.len()) < SHOWN_RUNS) | (pl.col("role") == "baseline"))
    return [
        {
            "run": row["run"],
            "kind": known[row["run"]],
            "train_s": row["train_s"],
            "train_text": text.seconds(row["train_s"]) + ("†" if row["partial"] else ""),
            "flops": row["flops"],
            "flops_text": text.quantity(row["flops"]) + ("†" if row["partial"] else ""),
        }
        for row in shown.iter_rows(named=True)
    ]


def drift(comparison: Comparison, run: str, most: int = 6, column: str = "smoothed") -> Rows:
    """Mean drift of the measured groups of each layer kind at every update; the rarest kinds beyond `most` are "other".

    Args:
        comparison: What is reported.
        run: The run.
        most: Kinds that are told apart.
        column: Which drift, a column of the table: `smoothed`, or the `score` that a policy compares with its threshold.
    """
    groups = scan(comparison.studies, "groups").filter(pl.col("run") == run).select("group", "kind")
    updates = scan(comparison.studies, "drift").filter((pl.col("run") == run) & pl.col(column).is_finite())
    frame = collect(updates.join(groups, on="group"), comparison.studies)
    common = frame["kind"].value_counts(sort=True)["kind"].head(most).to_list()
    kind = pl.when(pl.col("kind").is_in(common)).then("kind").otherwise(pl.lit("other"))
    means = frame.group_by("update", "step", kind).agg(pl.col(column).mean().alias("drift"), pl.len().alias("groups"))
    return means.sort("update", "kind").to_dicts()


def thresholds(comparison: Comparison, run: str) -> Rows:
    """The thresholds of the decisions of a run that had one."""
    frame = scan(comparison.studies, "events").filter((pl.col("run") == run) & pl.col("threshold").is_finite()).sort("step")
    return collect(frame.select("step", "event", "threshold", "frozen_groups", "limited_by"), comparison.studies).to_dicts()


def events(comparison: Comparison, run: str) -> Rows:
    """The decisions of a run that froze or thawed something."""
    groups = scan(comparison.studies, "runs").filter(pl.col("run") == run).select("run", "num_groups")
    before = pl.col("active_groups").shift(1).fill_null(pl.col("num_groups"))
    frame = scan(comparison.studies, "events").filter(pl.col("run") == run).join(groups, on="run").sort("step", "event")
    frame = frame.with_columns((pl.col("active_groups") + pl.col("frozen_groups") - before).alias("thawed"))
    changes = frame.filter((pl.col("frozen_groups") > 0) | (pl.col("thawed") > 0))
    columns = ("step", "event", "frozen_groups", "frozen_elements", "thawed", "active_groups")
    return collect(changes.select(columns), comparison.studies).to_dicts()


def schedule(comparison: Comparison, run: str, room: float = MAX_HEIGHT_PX) -> Schedule | None:
    """The layout of the freeze schedule, not higher than `room` pixels; None for a run without recorded groups or steps."""
    studies = comparison.studies
    freezes = scan(studies, "freezes").filter(pl.col("run") == run).group_by("group").agg(pl.col("step").sort().alias("frozen_at"))
    groups = collect(scan(studies, "groups").filter(pl.col("run") == run).join(freezes, on="group", how="left").sort("group"), studies)
    row = comparison.runs.row(by_predicate=pl.col("run") == run, named=True)
    if groups.is_empty() or not row["steps"]:
        return None
    changes = events(comparison, run)
    thaws = [(event["step"], event["active_groups"] == groups.height) for event in changes if event["thawed"]]
    spans = [_spans(frozen_at or [], thaws, row["steps"]) for frozen_at in groups["frozen_at"].to_list()]
    found = [(group, own) for group, own in zip(groups.iter_rows(named=True), spans, strict=True)]
    bands = [(layer, list(part)) for layer, part in groupby(found, key=lambda pair: pair[0]["layer"])]
    merge, scale = groups.height > CELLS, min(1.0, room / sum(_band_px(len(part)) for _, part in bands))
    bars, labels, top, labelled = Rows(), dict[int, str](), 0.0, -_LABEL_PX
    for layer, part in bands:
        height = _band_px(len(part)) * scale
        bars += _band_bars(part, top, height - _GAP_PX * scale, merge=merge)
        if top + height / 2 - labelled >= _LABEL_PX:
            labelled = top + height / 2
            labels[round(labelled)] = layer
        top += height
    return Schedule(run, bars, labels, round(top), changes, row["steps"], groups.height, merge, len(bands) - len(labels))


Spans = tuple[tuple[int, int, str], ...]


def _spans(frozen_at: list[int], thaws: list[tuple[int, bool]], steps: int) -> Spans:
    """From, to and state of a group's states.

    Args:
        frozen_at: Steps at which it froze.
        thaws: Steps at which some group thawed, and whether all groups were active then.
        steps: Steps of the run.
    """
    states = [(0, ACTIVE)]
    for step, state in sorted([*((at, FROZEN) for at in frozen_at), *((at, ACTIVE if all_ else UNKNOWN) for at, all_ in thaws)]):
        if state != states[-1][1] and not (state == UNKNOWN and states[-1][1] == ACTIVE):
            states.append((step, state))
    ends = [*states[1:], (steps, "")]
    return tuple((start, end, state) for (start, state), (end, _) in zip(states, ends, strict=True) if end > start)


def _band_px(num_groups: int) -> float:
    return max(_BAND_MIN_PX, num_groups * _GROUP_PX) + _GAP_PX


def _band_bars(part: list[tuple[dict[str, Any], Spans]], top: float, height: float, *, merge: bool) -> Rows:
    """The cells of a layer's band, a group below the other."""
    bars, each, first = Rows(), height / len(part), 0
    for _, same in groupby(enumerate(part), key=lambda entry: (0 if merge else entry[0], entry[1][1])):
        members = [entry for _, entry in same]
        groups, spans = [group for group, _ in members], members[0][1]
        last = first + len(groups)
        names = [groups[0]["name"], groups[-1]["name"]]
        shared = {
            "y0": round(top + first * each, 2),
            "y1": round(top + last * each, 2),
            "group": names[0] if len(groups) == 1 else f"{names[0]} … {names[1]} ({len(groups)} groups)",
            "layer_kind": groups[0]["kind"],
            "elements": sum(group["elements"] for group in groups),
            "fate": _fate(spans),
        }
        bars += [{**shared, "from": start, "to": end, "state": state} for start, end, state in spans]
        first = last
    return bars


def _fate(spans: Spans) -> str:
    turns = [
        f"{'active again' if state == ACTIVE else state} {'from' if state != FROZEN else 'at'} step {start}" for start, _, state in spans
    ]
    return ", ".join(turns[1:] if spans[0][2] == ACTIVE else turns) or "active to the end"


def environments(comparison: Comparison) -> list[dict[str, Any]]:
    """What each run recorded about where it ran."""
    frame = collect(scan(comparison.studies, "runs").sort("started_at").select("environment_json"), comparison.studies)
    return [json.loads(document) for document in frame["environment_json"]]
