"""One row per run and one per setting: what each reached, what it cost, and how it stands against the baseline.

The words, used in this sense everywhere in analysis: *last* is the value of a run's latest evaluation, whenever that was; *at budget* the
value after the last planned step, which only completed runs have; *best* the most favourable value of any evaluation (an optimistic number:
it picks its own moment); *partial* any value of a run that did not complete. Ranks, the Pareto front, differences, statistics and means
over seeds use values at budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from fat_ray.analysis.measure import Measure, check_known, measure_of
from fat_ray.analysis.query import Condition, Fields, Order, matching, parse_condition, parse_order, sorted_by, spec_columns
from fat_ray.analysis.read import Study, collect, open_studies, scan, tolerantly
from fat_ray.analysis.runs import COMPARED_COSTS, RUN_COLUMNS, RUN_KEY, against, check_final, measured, started
from fat_ray.analysis.seeds import seed_statistics
from fat_ray.analysis.statistics import prepare
from fat_ray.errors import InputError
from fat_ray.records.catalogue import COMPACTED
from fat_ray.records.place import Place
from fat_ray.rules import compromise, front_ranks
from fat_ray.spec.path import shorten
from fat_ray.spec.study import Objective, shown_objective
from fat_ray.view import text

FULL = "none"
"""Label of the baseline that trains all parameters."""

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


SETTING_KEY = ["study", "setting"]
_RANKS = ("pareto_rank", "on_front")
_SHOWN, _MANY_RUNS = 12, 500  # settings in a message; runs whose files take longer to open than to read


@dataclass(frozen=True)
class Options:
    """What is asked of a comparison.

    Attributes:
        metric: What the statistics over seeds are about: ``<split>/<metric>``, or a cost of `fat_ray.spec.study.COSTS`; None: the
            metric that the first study shows, on the validation split.
        baseline: Name of the baseline, or of another setting, that all are compared with, seed by seed.
        margin: Differences up to this do not matter: then it is judged who is within it.
        where: Conditions that runs must satisfy, such as ``freeze.threshold < 0``. The baseline is compared with in any case.
        sort: Field by which rows are ordered, ``:desc`` behind it for the largest first; None: by rank.
        statistics: Whether anything is said of seeds at all; else the columns of `seeds.STATISTICS` are null.
        intervals: So many settings, from the first, get intervals, which take longest; None, or with a margin: all.
    """

    metric: str | None = None
    baseline: str = FULL
    margin: float | None = None
    where: Sequence[str] = ()
    sort: str | None = None
    statistics: bool = True
    intervals: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        studies: What was read.
        metric: The task metric shown as val, test and zero-shot: that of the measure, or else `shown_objective` of the first study.
        direction: Which way the metric is better.
        objectives: Those of the first study; every run is ranked by them.
        measure: What the statistics over seeds are about.
        options: What was asked.
        runs: One row per run (`RUN_COLUMNS`), ranked ones first, from best to worst, unless another order was asked for.
        settings: One row per trial or baseline, in the order of their ranks or the one asked for: means and sample standard deviations
            over its completed seeds, and `seeds.STATISTICS`.
        references: What a constant prediction scores: study, val, test, zero_shot.
        notes: What a reader must know before comparing; empty when there is nothing.
        damage: What could not be read, a sentence each; empty when all was.
    """

    studies: list[Study]
    metric: str
    direction: Literal["maximize", "minimize"]
    objectives: list[Objective]
    measure: Measure
    options: Options
    runs: pl.DataFrame
    settings: pl.DataFrame
    references: pl.DataFrame
    notes: list[str]
    damage: list[str]

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


def compare(given: Sequence[Path | str | Place], options: Options | None = None) -> Comparison:
    """Compares the runs of one or several studies, finished or still running. What is damaged is left out, and said.

    Args:
        given: Directories of studies or URIs of them; or single runs, as ``DIR/RUN``.
        options: What is asked; None: the defaults.

    Raises:
        RecordError: There is no study, or it cannot be read at all.
        InputError: A run, a field, the metric or the baseline does not exist.
    """
    return tolerantly(open_studies(given), lambda studies: compare_studies(studies, options))


@dataclass(frozen=True)
class _Question:
    """The options, understood: the metric shown, what is compared, the conditions and the order with the columns that they are about."""

    shown: Objective
    measure: Measure
    conditions: list[tuple[Condition, str]]
    order: tuple[Order, str] | None

    @property
    def metric(self) -> str:
        return self.shown.metric.removeprefix("val/")

    @property
    def columns(self) -> list[str]:
        return [column for _, column in [*self.conditions, *([self.order] if self.order else [])]]


def _understood(studies: Sequence[Study], options: Options) -> _Question:
    first = shown_objective(studies[0].spec)
    measure = measure_of(options.metric, first, [objective for study in studies for objective in study_objectives(study)])
    shown = first if measure.is_cost else Objective(metric=f"val/{measure.metric}", direction=measure.direction)
    metric = shown.metric.removeprefix("val/")
    aliases = {f"val/{metric}": "val_last", f"test/{metric}": "test_last", f"zero_shot/{metric}": "zero_shot_last"}
    names = [name for name in RUN_COLUMNS if name != "params_json"]
    fields = Fields(names, [study.spec for study in studies], {measure.name: "value", **aliases})
    conditions = [parse_condition(text) for text in options.where]
    for condition in conditions:
        if condition.field in _RANKS:
            raise InputError(f"--where {condition.field}: ranks are those among the runs that are left, so they cannot choose; see --sort")
    order = parse_order(options.sort) if options.sort else None
    return _Question(
        shown,
        measure,
        [(condition, fields.column(condition.field, "--where")) for condition in conditions],
        (order, fields.column(order.field, "--sort")) if order else None,
    )


def compare_studies(studies: list[Study], options: Options | None = None) -> Comparison:
    """Compares the runs of studies that are open.

    Raises:
        DamagedError: Some of them cannot be read.
        VanishedError: A compaction came between.
        InputError: As for `compare`.
    """
    options = options or Options()
    asked, objectives = _understood(studies, options), study_objectives(studies[0])
    if options.statistics and any(len(study.spec["seeds"]) > 1 for study in studies):
        prepare()
    evals = _evaluations(studies, asked, objectives)
    everything = measured(started(studies, spec_columns(asked.columns)), evals, asked.metric, asked.shown.direction, asked.measure)
    check_final(studies, everything, asked.metric)
    base, notes = _baseline(everything, studies, options.baseline)
    runs = _wanted(_with_wholes(against(everything, base), studies, options.baseline), studies, asked)
    settings = _ranked(_settings(runs, _objective_values(runs, evals, objectives)), objectives)
    runs = runs.join(settings.select(*SETTING_KEY, *_RANKS, "order"), on=SETTING_KEY, how="left").sort(
        "order", "seed", "run", nulls_last=True
    )
    runs, settings = _in_order(runs, settings, asked)
    shown = None if options.intervals is None else settings.select(SETTING_KEY).head(options.intervals)
    compared = runs.filter(~pl.col("partial")) if options.statistics else runs.clear()
    statistics = seed_statistics(compared, asked.measure.direction, options.margin, shown)
    settings = settings.join(statistics, on=SETTING_KEY, how="left", maintain_order="left")
    return Comparison(
        studies=studies,
        metric=asked.metric,
        direction=asked.shown.direction,
        objectives=objectives,
        measure=asked.measure,
        options=options,
        runs=runs.select(pl.col(name).cast(kind) for name, kind in RUN_COLUMNS.items()),
        settings=settings.drop("order", "is_whole"),
        references=_references(evals, asked.metric),
        notes=[*_notes(studies, objectives), *notes, *_many_files(studies, everything)],
        damage=[sentence for study in studies for sentence in study.damage],
    )


def study_objectives(study: Study) -> list[Objective]:
    """What the study's search improves, in order."""
    return [Objective.model_validate(entry) for entry in study.spec["objectives"]]


def _evaluations(studies: Sequence[Study], asked: _Question, objectives: Sequence[Objective]) -> pl.DataFrame:
    """The evaluations that the comparison needs; NaN is no value."""
    names = {
        asked.metric,
        f"constant_{asked.metric}",
        asked.measure.metric,
        *(objective.metric.removeprefix("val/") for objective in objectives),
    }
    wanted = scan(studies, "evals").filter(pl.col("metric").is_in(sorted(names))).select(*RUN_KEY, "step", "split", "metric", "value")
    found = collect(wanted.with_columns(pl.col("value").fill_nan(None)), studies)
    if found.filter(pl.col("metric") == asked.measure.metric).is_empty():
        check_known(asked.measure, collect(scan(studies, "evals").select("split", "metric").unique(), studies))
    check_known(asked.measure, found)
    return found


def _baseline(runs: pl.DataFrame, studies: Sequence[Study], name: str) -> tuple[pl.DataFrame, list[str]]:
    """The baseline's runs for each study, its own or else those of the only study that has it; and what has to be said of that.

    Raises:
        InputError: No study has a setting of this name, though it was asked for.
    """
    found = runs.filter(_is_base(name))
    having = found["study"].unique(maintain_order=True).to_list()
    if not having and name != FULL:
        known = sorted(runs["setting"].unique())
        shown = text.listing(known[:_SHOWN]) if known else "none"
        raise InputError(f"--baseline {shorten(name)}: no study has a setting of this name; there are {shown}")
    lacking = [study.key for study in studies if study.key not in having]
    if len(having) != 1 or not lacking:
        return found, []
    lent = [found.with_columns(pl.lit(key).alias("study")) for key in lacking]
    notes = [f"{key} has no {name}: its runs are compared with {name} of {having[0]}, seed by seed." for key in lacking]
    return pl.concat([found, *lent]), notes


def _is_base(name: str) -> pl.Expr:
    return pl.col("setting") == name


def _with_wholes(runs: pl.DataFrame, studies: Sequence[Study], baseline: str) -> pl.DataFrame:
    """Adds whether a run belongs to the baseline (`is_base`), and to a setting of which all planned seeds completed (`is_whole`)."""
    planned = pl.DataFrame({"study": [study.key for study in studies], "planned": [len(study.spec["seeds"]) for study in studies]})
    completed = (~pl.col("partial")).sum().over(SETTING_KEY)
    enough = (pl.col("role") != "search") | (completed >= pl.col("planned"))
    whole = enough & (completed == pl.len().over(SETTING_KEY))
    return runs.join(planned, on="study").with_columns(_is_base(baseline).alias("is_base"), whole.alias("is_whole"))


def _wanted(runs: pl.DataFrame, studies: Sequence[Study], asked: _Question) -> pl.DataFrame:
    """The runs that satisfy all conditions, and of studies of which single runs were named, these."""
    for condition, column in asked.conditions:
        runs = matching(runs, condition, column)
    for study in studies:
        if study.chosen is not None:
            runs = runs.filter((pl.col("study") != study.key) | pl.col("run").is_in(sorted(study.chosen)))
    return runs


def _in_order(runs: pl.DataFrame, settings: pl.DataFrame, asked: _Question) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both in the order that was asked for: settings by their mean, or by what all their runs share."""
    if asked.order is None:
        return runs, settings
    order, column = asked.order
    key = pl.col(column).mean() if runs.schema[column].is_numeric() else pl.col(column).first()
    keys = runs.group_by(SETTING_KEY).agg(key.alias("sorted_by"))
    by_setting = settings.join(keys, on=SETTING_KEY, how="left", maintain_order="left")
    by_setting = sorted_by(by_setting, "sorted_by", descending=order.descending).drop("sorted_by")
    return sorted_by(runs, column, descending=order.descending), by_setting


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


def _settings(runs: pl.DataFrame, objectives: pl.DataFrame) -> pl.DataFrame:
    whole = ~pl.col("partial")
    values = [name for name in objectives.columns if name not in RUN_KEY]
    return (
        runs.join(objectives, on=RUN_KEY)
        .sort("seed")
        .group_by(SETTING_KEY, maintain_order=True)
        .agg(
            pl.col("trial", "role", "label", "policy", "params_json", "is_whole").first(),
            pl.len().alias("runs"),
            whole.sum().alias("completed"),
            pl.col("seed").alias("seeds"),
            *(pl.col(name).filter(whole).mean().alias(f"{name}_mean") for name in MEASURES),
            *(pl.col(name).filter(whole).std(ddof=1).alias(f"{name}_sd") for name in MEASURES),
            *(pl.col(name).fill_null(math.nan).filter(whole).mean() for name in values),  # one unknown value: no rank
        )
        .with_columns(pl.concat_list(values).list.eval(pl.element().fill_nan(None)).alias("objective_means"))
        .drop(values)
    )


def _ranked(settings: pl.DataFrame, objectives: Sequence[Objective]) -> pl.DataFrame:
    """Adds pareto_rank (null unless every planned seed completed), on_front and order: by rank, then by the first objective."""
    known = pl.col("objective_means").list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    counted = settings.filter(pl.col("is_whole") & known)
    directions = [objective.direction for objective in objectives]
    ranks = pl.Series("pareto_rank", front_ranks(counted["objective_means"].to_list(), directions), dtype=pl.Int32)
    first = pl.col("objective_means").list.first() * (-1 if directions[0] == "maximize" else 1)
    return (
        settings.join(counted.select(SETTING_KEY).with_columns(ranks), on=SETTING_KEY, how="left")
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


def _many_files(studies: Sequence[Study], runs: pl.DataFrame) -> list[str]:
    """How to read quicker what lies in many small files."""
    counted = dict(runs["study"].value_counts().iter_rows())
    large = (study for study in studies if study.place.local and counted.get(study.key, 0) >= _MANY_RUNS)
    return [
        f"{counted[study.key]} runs of {study.key} lie in many small files: fat-ray compact {study.directory} makes them quicker to read."
        for study in large
        if not study.place.files(f"records/runs/{COMPACTED}")
    ]


def _part(study: Study, part: str) -> Any:
    return study.spec.get(part)
