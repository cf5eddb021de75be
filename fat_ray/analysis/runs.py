"""One row per run: what it was, how it ended, what it reached and cost, and how it stands against the baseline with the same seed."""

import json
import math
from collections.abc import Iterable, Sequence

import polars as pl

from fat_ray.analysis.measure import Measure, of_split
from fat_ray.analysis.read import DamagedError, Study, collect, scan
from fat_ray.records.catalogue import Damage

RUN_KEY = ("study", "run")

COMPARED_COSTS = ("flops", "train_s", "comm_bytes", "mean_optimizer_bytes", "mean_peak_memory_bytes")
"""Costs of a run that are also shown as `<name>_ratio`, over those of the baseline."""

RUN_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "study": pl.String,
    "run": pl.String,
    "setting": pl.String,
    "trial": pl.Int32,
    "seed": pl.Int64,
    "role": pl.String,
    "label": pl.String,
    "policy": pl.String,
    "params_json": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "partial": pl.Boolean,
    "steps": pl.Int32,
    "planned_steps": pl.Int32,
    "val_last": pl.Float64,
    "val_last_step": pl.Int32,
    "val_at_budget": pl.Float64,
    "val_best": pl.Float64,
    "val_best_step": pl.Int32,
    "test_last": pl.Float64,
    "zero_shot_last": pl.Float64,
    "mean_active": pl.Float64,
    "mean_active_fraction": pl.Float64,
    "final_active_fraction": pl.Float64,
    "train_s": pl.Float64,
    "wall_s": pl.Float64,
    "worker_s": pl.Float64,
    "updates": pl.Int64,
    "flops": pl.Float64,
    "comm_bytes": pl.Int64,
    "mean_optimizer_bytes": pl.Float64,
    "peak_memory_bytes": pl.Int64,
    "mean_peak_memory_bytes": pl.Float64,
    "value": pl.Float64,
    "difference": pl.Float64,
    "delta_val": pl.Float64,
    "delta_test": pl.Float64,
    "flops_ratio": pl.Float64,
    "train_s_ratio": pl.Float64,
    "comm_bytes_ratio": pl.Float64,
    "mean_optimizer_bytes_ratio": pl.Float64,
    "mean_peak_memory_bytes_ratio": pl.Float64,
    "pareto_rank": pl.Int32,
    "on_front": pl.Boolean,
}
"""Columns of `Comparison.runs`; docs/compare.md says what each one means."""

_SUMMED = ("steps", "train_s", "flops", "updates", "mean_active", "comm_bytes", "peak_memory_bytes")
_KEPT = ("study", "run", "trial", "seed", "role", "label", "policy", "params_json", "total_elements")
_ENDED = ("status", "reason", "wall_s", "worker_s", "mean_active_fraction", "final_json", *_SUMMED)


def started(studies: Sequence[Study], further: Sequence[pl.Expr]) -> pl.DataFrame:
    """One row per run that started, with its end, or with its progress so far when it has none.

    Args:
        studies: What is read.
        further: More columns of the table `runs`.

    Raises:
        DamagedError: A run that ended has other steps than its end says.
    """
    planned = pl.col("spec_json").str.json_path_match("$.train.steps").cast(pl.Int32).alias("planned_steps")
    begun, ended = scan(studies, "runs").select(*_KEPT, planned, *further), scan(studies, "ends").select(*RUN_KEY, *_ENDED)
    known = collect(begun.join(ended, on=RUN_KEY, how="left"), studies)
    found = known.join(_course(studies), on=RUN_KEY, how="left").join(_progress(studies, known), on=RUN_KEY, how="left")
    _check_steps(studies, found)
    elements = pl.col("total_elements")
    return found.with_columns(
        _setting().alias("setting"),
        pl.col("status").fill_null("running"),
        pl.col("reason").fill_null(""),
        *(pl.coalesce(name, f"{name}_so_far") for name in _SUMMED),
        pl.coalesce("mean_active_fraction", pl.col("mean_active_so_far") / elements),
        (pl.col("last_active") / elements).alias("final_active_fraction"),
    ).with_columns((pl.col("status") != "completed").alias("partial"))


def _course(studies: Sequence[Study]) -> pl.DataFrame:
    """What of a run's steps its end does not sum up."""
    steps = scan(studies, "steps").group_by(RUN_KEY)
    means = pl.col("optimizer_bytes", "peak_memory_bytes").mean().name.prefix("mean_")
    last = pl.col("active_elements").sort_by("step").last().alias("last_active")
    return collect(steps.agg(pl.len().alias("num_rows"), last, means), studies)


def _progress(studies: Sequence[Study], runs: pl.DataFrame) -> pl.DataFrame:
    """What an end would sum up, of the runs that have none, or one that does not say."""
    silent = runs.filter(pl.any_horizontal(pl.col("status", *_SUMMED).is_null())).select(RUN_KEY)
    steps = scan(studies, "steps").join(silent.lazy(), on=RUN_KEY, how="semi").group_by(RUN_KEY)
    progress = steps.agg(
        (pl.col("step").max() + 1).cast(pl.Int32).alias("steps_so_far"),
        pl.col("step_s").sum().alias("train_s_so_far"),
        pl.col("flops").sum().alias("flops_so_far"),
        pl.col("active_elements").sum().alias("updates_so_far"),
        pl.col("active_elements").mean().alias("mean_active_so_far"),
        pl.when(pl.col("comm_bytes").count() > 0).then(pl.col("comm_bytes").sum()).alias("comm_bytes_so_far"),
        pl.col("peak_memory_bytes").max().alias("peak_memory_bytes_so_far"),
    )
    # With no such run not even the files are opened.
    return collect(progress, studies) if silent.height else pl.DataFrame(schema=progress.collect_schema())


def _setting() -> pl.Expr:
    trial = pl.format("trial {}", pl.col("trial"))
    return pl.when(pl.col("role") == "search").then(trial).when(pl.col("role") == "baseline").then("label").otherwise(pl.lit("single"))


def _check_steps(studies: Sequence[Study], runs: pl.DataFrame) -> None:
    """A part that is missing at the end leaves no gap, but a run knows at its end how many steps it did."""
    rows = pl.col("num_rows").fill_null(0)
    short = runs.filter(pl.col("status").is_not_null() & (rows != pl.col("steps")))
    _refuse(
        studies,
        [
            (study, run, f"records/steps/{run} holds {found or 0} of the {steps} steps that the run's end speaks of: a part is missing")
            for study, run, found, steps in short.select(*RUN_KEY, "num_rows", "steps").iter_rows()
        ],
    )


def _refuse(studies: Sequence[Study], found: Iterable[tuple[str, str, str]]) -> None:
    """Raises what is wrong with the runs of the first study that any is wrong with."""
    of_study: dict[str, list[Damage]] = {}
    places = {study.key: study.place.name for study in studies}
    for study, run, message in found:
        of_study.setdefault(study, []).append(Damage(frozenset([run]), f"{places[study]}/{message}"))
    for study, damage in of_study.items():
        raise DamagedError(study, damage)


def measured(runs: pl.DataFrame, evals: pl.DataFrame, metric: str, direction: str, measure: Measure) -> pl.DataFrame:
    """Adds the metric's last value, that at the budget, and the best; and the number that is compared (`value`).

    Args:
        runs: As `started` returns them.
        evals: The evaluations of `metric`, and of the measure's.
        metric: The metric shown.
        direction: Which way it is better.
        measure: What is compared.
    """
    values = evals.filter(pl.col("metric") == metric)
    val, others = pl.col("split") == "val", ~pl.col("split").is_in(["val", "test"])
    last = values.sort("step").group_by(*RUN_KEY, "split").agg(pl.col("value", "step").last())
    final = last.group_by(RUN_KEY).agg(
        pl.col("value").filter(val).first().alias("val_last"),
        pl.col("step").filter(val).first().alias("val_last_step"),
        pl.col("value").filter(pl.col("split") == "test").first().alias("test_last"),
        pl.col("value").filter(others).mean().alias("zero_shot_last"),
    )
    seen = values.filter(val & pl.col("value").is_not_null()).sort("value", "step", descending=[direction == "maximize", False])
    best = seen.group_by(RUN_KEY, maintain_order=True).agg(
        pl.col("value").first().alias("val_best"), pl.col("step").first().alias("val_best_step")
    )
    whole = pl.when(~pl.col("partial"))
    found = runs.join(final, on=RUN_KEY, how="left").join(best, on=RUN_KEY, how="left")
    found = found.join(_compared(runs, evals, measure), on=RUN_KEY, how="left")
    return found.with_columns(whole.then("val_last").alias("val_at_budget"), whole.then("value").alias("value"))


def _compared(runs: pl.DataFrame, evals: pl.DataFrame, measure: Measure) -> pl.DataFrame:
    """The number of each run that is compared."""
    if measure.is_cost:
        return runs.select(*RUN_KEY, pl.col(measure.metric).cast(pl.Float64).alias("value"))
    wanted = evals.filter(of_split(measure.split) & (pl.col("metric") == measure.metric)).sort("step")
    last = wanted.group_by(*RUN_KEY, "split").agg(pl.col("value").last())
    return last.group_by(RUN_KEY).agg(pl.col("value").mean())


def check_final(studies: Sequence[Study], runs: pl.DataFrame, metric: str) -> None:
    """Makes sure that the last value on the validation split is the one that a completed run's end speaks of, if it does.

    Args:
        studies: What was read.
        runs: As `measured` returns them.
        metric: The metric shown.

    Raises:
        DamagedError: It is another: evaluations are missing.
    """
    wrong = []
    for study, run, value, final in runs.filter(~pl.col("partial")).select(*RUN_KEY, "val_last", "final_json").iter_rows():
        said = json.loads(final or "{}").get(f"val/{metric}")
        expected = None if said is None or not math.isfinite(float(said)) else float(said)
        if expected is not None and (value is None or not math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)):
            wrong.append((study, run, f"records/evals/{run} lacks the last evaluation that the run's end speaks of: a part is missing"))
    _refuse(studies, wrong)


def against(runs: pl.DataFrame, base: pl.DataFrame) -> pl.DataFrame:
    """Adds differences and ratios to the baseline with the same seed; null where one of the two did not complete.

    Args:
        runs: As `measured` returns them.
        base: The baseline's runs, each with the study (`study`) whose runs it is compared with.
    """
    compared = ("val_last", "test_last", "value", *COMPARED_COSTS)
    known = base.filter(~pl.col("partial")).select("study", "seed", pl.col(compared).name.prefix("base_"))
    whole = pl.when(~pl.col("partial"))
    return runs.join(known, on=["study", "seed"], how="left").with_columns(
        whole.then(pl.col("val_last") - pl.col("base_val_last")).alias("delta_val"),
        whole.then(pl.col("test_last") - pl.col("base_test_last")).alias("delta_test"),
        whole.then(pl.col("value") - pl.col("base_value")).alias("difference"),
        *(  # one worker sends nothing: no ratio
            pl.when(~pl.col("partial") & (pl.col(f"base_{cost}") > 0)).then(pl.col(cost) / pl.col(f"base_{cost}")).alias(f"{cost}_ratio")
            for cost in COMPARED_COSTS
        ),
    )
