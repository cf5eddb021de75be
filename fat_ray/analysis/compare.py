"""One row per run and one per setting: what each reached, what it cost, and how it stands against full fine-tuning.

The words, used in this sense everywhere in analysis: *last* is the value of a run's latest evaluation, whenever that was; *at budget* the
value after the last planned step, which only completed runs have; *best* the most favourable value of any evaluation (an optimistic number:
it picks its own moment); *partial* any value of a run that did not complete. Ranks, the Pareto front, differences and means over seeds use
values at budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from fat_ray.analysis.read import Study, collect, open_studies, scan
from fat_ray.rules import compromise, front_ranks
from fat_ray.spec.study import Objective, shown_objective

RUN_KEY = ("study", "run")
FULL = "none"
"""Label of the baseline that trains all parameters."""

COMPARED_COSTS = ("flops", "train_s", "comm_bytes", "mean_optimizer_bytes", "mean_peak_memory_bytes")
"""Costs of a run that are also shown as `<name>_ratio`, over those of full fine-tuning."""

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

MEASURES = (
    "val_last",
    "val_at_budget",
    "val_best",
    "test_last",
    "zero_shot_last",
    "mean_active",
    "mean_active_fraction",
    "final_active_fraction",
    "train_s",
    "wall_s",
    "worker_s",
    "flops",
    "comm_bytes",
    "mean_optimizer_bytes",
    "peak_memory_bytes",
    "mean_peak_memory_bytes",
    "delta_val",
    "delta_test",
    *(f"{cost}_ratio" for cost in COMPARED_COSTS),
)
"""Columns of runs that `Comparison.settings` holds as `<name>_mean` and `<name>_sd` over the seeds."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        studies: What was read.
        metric: The task metric shown as val, test and zero-shot: `shown_objective` of the first study.
        direction: Which way the metric is better.
        objectives: Those of the first study; every run is ranked by them.
        runs: One row per run (`RUN_COLUMNS`), ranked ones first, from best to worst.
        settings: One row per trial or baseline: means and sample standard deviations over its completed seeds, in the order of their ranks.
        references: What a constant prediction scores: study, val, test, zero_shot.
        notes: What a reader must know before comparing; empty when there is nothing.
    """

    studies: list[Study]
    metric: str
    direction: Literal["maximize", "minimize"]
    objectives: list[Objective]
    runs: pl.DataFrame
    settings: pl.DataFrame
    references: pl.DataFrame
    notes: list[str]

    @property
    def several_seeds(self) -> bool:
        """Whether any setting was run with more than one seed."""
        return bool((self.settings["runs"] > 1).any())

    @property
    def best(self) -> dict[str, Any] | None:
        """The ranked setting that is no baseline with the best compromise between the objectives; None while there is none.

        With one objective, the best setting; see `rules.compromise`. A row of `settings`.
        """
        ranked = self.settings.filter((pl.col("role") != "baseline") & pl.col("pareto_rank").is_not_null())
        rows = {str(number): row for number, row in enumerate(ranked.iter_rows(named=True))}
        if not rows:
            return None
        values = {number: row["objective_means"] for number, row in rows.items()}
        return rows[compromise(values, [objective.direction for objective in self.objectives])]


def compare(directories: Sequence[Path | str]) -> Comparison:
    """Compares the runs of one or several studies, finished or still running.

    Raises:
        RecordError: A directory holds no study, or records that cannot be read.
    """
    studies = open_studies(directories)
    objectives = study_objectives(studies[0])
    shown = shown_objective(studies[0].spec)
    metric = shown.metric.removeprefix("val/")
    evals = collect(scan(studies, "evals"), studies).with_columns(pl.col("value").fill_nan(None))
    runs = _against_full(_measured(_started(studies), evals, metric, shown.direction))
    settings = _ranked(_settings(runs, _objective_values(runs, evals, objectives), studies), objectives)
    runs = runs.join(settings.select("study", "setting", "pareto_rank", "on_front", "order"), on=["study", "setting"], how="left")
    return Comparison(
        studies=studies,
        metric=metric,
        direction=shown.direction,
        objectives=objectives,
        runs=runs.sort("order", "seed", "run", nulls_last=True).select(pl.col(name).cast(kind) for name, kind in RUN_COLUMNS.items()),
        settings=settings.drop("order", "planned_seeds"),
        references=_references(evals, metric),
        notes=_notes(studies, objectives),
    )


def study_objectives(study: Study) -> list[Objective]:
    """What the study's search improves, in order."""
    return [Objective.model_validate(entry) for entry in study.spec["objectives"]]


_SUMMED = ("steps", "train_s", "flops", "updates", "mean_active", "comm_bytes", "peak_memory_bytes")


def _started(studies: Sequence[Study]) -> pl.DataFrame:
    """One row per run that started, with its end, or with its progress so far when it has none."""
    steps = scan(studies, "steps").group_by(RUN_KEY)
    progress = steps.agg(
        pl.col("active_elements").sort_by("step").last().alias("last_active"),
        (pl.col("step").max() + 1).cast(pl.Int32).alias("steps_so_far"),
        pl.col("step_s").sum().alias("train_s_so_far"),
        pl.col("flops").sum().alias("flops_so_far"),
        pl.col("active_elements").sum().alias("updates_so_far"),
        pl.col("active_elements").mean().alias("mean_active_so_far"),
        pl.when(pl.col("comm_bytes").count() > 0).then(pl.col("comm_bytes").sum()).alias("comm_bytes_so_far"),
        pl.col("peak_memory_bytes").max().alias("peak_memory_bytes_so_far"),
        pl.col("optimizer_bytes", "peak_memory_bytes").mean().name.prefix("mean_"),
    )
    elements = pl.col("total_elements")
    return collect(
        scan(studies, "runs")
        .join(scan(studies, "ends"), on=RUN_KEY, how="left")
        .join(progress, on=RUN_KEY, how="left")
        .with_columns(
            _setting().alias("setting"),
            pl.col("status").fill_null("running"),
            pl.col("reason").fill_null(""),
            pl.col("spec_json").str.json_path_match("$.train.steps").cast(pl.Int32).alias("planned_steps"),
            *(pl.coalesce(name, f"{name}_so_far") for name in _SUMMED),
            pl.coalesce("mean_active_fraction", pl.col("mean_active_so_far") / elements),
            (pl.col("last_active") / elements).alias("final_active_fraction"),
        )
        .with_columns((pl.col("status") != "completed").alias("partial")),
        studies,
    )


def _setting() -> pl.Expr:
    trial = pl.format("trial {}", pl.col("trial"))
    return pl.when(pl.col("role") == "search").then(trial).when(pl.col("role") == "baseline").then("label").otherwise(pl.lit("single"))


def _measured(runs: pl.DataFrame, evals: pl.DataFrame, metric: str, direction: str) -> pl.DataFrame:
    """Adds the metric's last value, that at the budget, and the best."""
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
    at_budget = pl.when(~pl.col("partial")).then("val_last").alias("val_at_budget")
    return runs.join(final, on=RUN_KEY, how="left").join(best, on=RUN_KEY, how="left").with_columns(at_budget)


def _against_full(runs: pl.DataFrame) -> pl.DataFrame:
    """Adds differences and ratios to full fine-tuning of the same study and seed; null where one of the two did not complete."""
    full = runs.filter((pl.col("role") == "baseline") & (pl.col("label") == FULL) & ~pl.col("partial")).select(
        "study", "seed", pl.col("val_last", "test_last", *COMPARED_COSTS).name.prefix("full_")
    )
    whole = pl.when(~pl.col("partial"))
    return runs.join(full, on=["study", "seed"], how="left").with_columns(
        whole.then(pl.col("val_last") - pl.col("full_val_last")).alias("delta_val"),
        whole.then(pl.col("test_last") - pl.col("full_test_last")).alias("delta_test"),
        *(  # one worker sends nothing: no ratio
            pl.when(~pl.col("partial") & (pl.col(f"full_{cost}") > 0)).then(pl.col(cost) / pl.col(f"full_{cost}")).alias(f"{cost}_ratio")
            for cost in COMPARED_COSTS
        ),
    )


def _objective_values(runs: pl.DataFrame, evals: pl.DataFrame, objectives: Sequence[Objective]) -> pl.DataFrame:
    """The objectives of each run as columns `objective_0`, `objective_1` …."""
    last = evals.filter(pl.col("split") == "val").sort("step").group_by(*RUN_KEY, "metric").agg(pl.col("value").last())
    frame = runs.select(*RUN_KEY, pl.col("mean_active", "mean_active_fraction", "worker_s", "train_s", "flops"))
    for number, objective in enumerate(objectives):
        name = f"objective_{number}"
        if objective.metric.startswith("val/"):
            wanted = last.filter(pl.col("metric") == objective.metric.removeprefix("val/"))
            frame = frame.join(wanted.select(*RUN_KEY, pl.col("value").alias(name)), on=RUN_KEY, how="left")
        else:
            frame = frame.with_columns(pl.col(objective.metric).alias(name))
    return frame.select(*RUN_KEY, pl.col("^objective_.*$"))


def _settings(runs: pl.DataFrame, objectives: pl.DataFrame, studies: Sequence[Study]) -> pl.DataFrame:
    whole = ~pl.col("partial")
    planned = pl.DataFrame({"study": [s.key for s in studies], "planned_seeds": [len(s.spec["seeds"]) for s in studies]})
    values = [name for name in objectives.columns if name not in RUN_KEY]
    return (
        runs.join(objectives, on=RUN_KEY)
        .sort("seed")
        .group_by("study", "setting", maintain_order=True)
        .agg(
            pl.col("trial", "role", "label", "policy", "params_json").first(),
            pl.len().alias("runs"),
            whole.sum().alias("completed"),
            pl.col("seed").alias("seeds"),
            *(pl.col(name).filter(whole).mean().alias(f"{name}_mean") for name in MEASURES),
            *(pl.col(name).filter(whole).std(ddof=1).alias(f"{name}_sd") for name in MEASURES),
            *(pl.col(name).fill_null(math.nan).filter(whole).mean() for name in values),  # one unknown value: no rank
        )
        .with_columns(pl.concat_list(values).list.eval(pl.element().fill_nan(None)).alias("objective_means"))
        .drop(values)
        .join(planned, on="study")
    )


def _ranked(settings: pl.DataFrame, objectives: Sequence[Objective]) -> pl.DataFrame:
    """Adds pareto_rank (null unless every seed completed), on_front and order: by rank, then by the first objective."""
    enough = (pl.col("role") != "search") | (pl.col("completed") >= pl.col("planned_seeds"))
    whole = (
        enough
        & (pl.col("completed") == pl.col("runs"))
        & pl.col("objective_means").list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    )
    counted = settings.filter(whole)
    directions = [objective.direction for objective in objectives]
    ranks = pl.Series("pareto_rank", front_ranks(counted["objective_means"].to_list(), directions), dtype=pl.Int32)
    key = ["study", "setting"]
    first = pl.col("objective_means").list.first() * (-1 if directions[0] == "maximize" else 1)
    return (
        settings.join(counted.select(key).with_columns(ranks), on=key, how="left")
        .with_columns((pl.col("pareto_rank") == 1).fill_null(value=False).alias("on_front"), first.alias("first"))
        .sort("pareto_rank", "first", "trial", "setting", nulls_last=True)
        .with_row_index("order")
        .drop("first")
    )


def _references(evals: pl.DataFrame, metric: str) -> pl.DataFrame:
    """What a constant prediction scores, recorded by the task with every evaluation; equal in all runs of a study."""
    constant = evals.filter(pl.col("metric") == f"constant_{metric}")
    of_split = {"val": pl.col("split") == "val", "test": pl.col("split") == "test"}
    of_split["zero_shot"] = ~(of_split["val"] | of_split["test"])
    values = [pl.col("value").filter(chosen).mean().alias(name) for name, chosen in of_split.items()]
    return constant.group_by("study", maintain_order=True).agg(values)


def _notes(studies: Sequence[Study], objectives: Sequence[Objective]) -> list[str]:
    first, notes = studies[0], []
    for study in studies[1:]:
        if study_objectives(study) != list(objectives):
            notes.append(f"{study.key} has other objectives than {first.key}; all runs are ranked by those of {first.key}.")
        differing = [part for part in ("task", "train") if _part(study, part) != _part(first, part)]
        if differing:
            notes.append(f"{study.key} and {first.key} differ in {' and '.join(differing)}: their values are not directly comparable.")
    return notes


def _part(study: Study, part: str) -> Any:
    return study.spec.get(part)
