"""The figures of a study by name: what each shows, from what, what it leaves out, and why where there is nothing to draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fat_ray.analysis import plots, plots_run, plots_search, search_space, series
from fat_ray.analysis.compare import Comparison
from fat_ray.analysis.insight import SearchInsight, sentences
from fat_ray.analysis.marks import Chart
from fat_ray.view import text

_NO_SETTING = "No setting has completed yet."
_NO_RUN = "No trial has completed, so there is no run to draw."


@dataclass(frozen=True)
class Subject:
    """What is drawn.

    Attributes:
        comparison: Of one study.
        run: The run whose schedule and drift are drawn; None: there is none.
        insight: What the search says of its settings; None: nobody asked.
        room: Pixels that the rows of the schedule may take.
    """

    comparison: Comparison
    run: str | None
    insight: SearchInsight | None = None
    room: float = series.MAX_HEIGHT_PX


@dataclass(frozen=True)
class Figure:
    """One chart with its words.

    Attributes:
        name: By which it is asked for.
        title: What there is to see.
        caption: How to read it, and what is left out or summarised.
        chart: Its specification, without a theme; None where there is nothing to draw.
        missing: Why there is nothing to draw.
        by_rows: Whether its height follows from how many rows it has.
    """

    name: str
    title: str
    caption: str
    chart: Chart | None
    missing: str
    by_rows: bool = False


def figure(name: str, subject: Subject) -> Figure:
    """One of `FIGURES`."""
    return FIGURES[name](name, subject)


def figures(subject: Subject) -> dict[str, Figure]:
    """All of them."""
    return {name: figure(name, subject) for name in FIGURES}


def _tradeoff(name: str, subject: Subject) -> Figure:
    metric = text.metric_name(subject.comparison.metric)
    return Figure(
        name,
        f"{metric} against the mean number of active parameters",
        "Completed settings only, mean ± sample standard deviation over seeds. Up and to the left is better; the line is the Pareto"
        " front of these two axes; N̄ is the mean over the steps. Values of runs that ended early are partial and not drawn.",
        plots.tradeoff(subject.comparison, "mean_active"),
        _NO_SETTING,
    )


def _tradeoff_time(name: str, subject: Subject) -> Figure:
    metric = text.metric_name(subject.comparison.metric)
    return Figure(
        name,
        f"{metric} against worker-seconds",
        "As before, against the time of a run's workers: wall-clock seconds, set-up and evaluation included, times their number. It"
        " includes what else ran on the machine at that time.",
        plots.tradeoff(subject.comparison, "worker_s"),
        _NO_SETTING,
    )


def _zero_shot(name: str, subject: Subject) -> Figure:
    metric = text.metric_name(subject.comparison.metric)
    return Figure(
        name,
        f"{metric} on data from elsewhere against that on the test split",
        "One point per completed setting, at budget. The dashed lines run through full fine-tuning: what lies above and right of them is"
        " better in both. Several zero-shot sets are averaged.",
        plots.zero_shot(subject.comparison),
        "No completed setting was evaluated on a test split and a zero-shot set.",
    )


def _why_no_seeds(subject: Subject) -> str:
    if not subject.comparison.several_seeds:
        return "Every setting was trained with one seed, so there is no interval."
    return "No run has completed, or none that shares its seed with the baseline."


def _first_settings(subject: Subject, shown: int) -> str:
    known = subject.comparison.settings.height
    if known <= series.SHOWN_SETTINGS or not shown:
        return ""
    return f" Drawn are the first {series.SHOWN_SETTINGS} of {known} settings in the order of the comparison, and the baselines."


def _seeds(name: str, subject: Subject) -> Figure:
    chart = plots.seeds(subject.comparison)
    return Figure(
        name,
        "How far the seeds of a setting lie apart",
        "Means with their 95 % BCa bootstrap intervals; the small marks are the seeds. The numbers are those of the table."
        + _first_settings(subject, chart is not None),
        chart,
        _why_no_seeds(subject),
        by_rows=True,
    )


def _differences(name: str, subject: Subject) -> Figure:
    chart = plots.differences(subject.comparison)
    return Figure(
        name,
        f"Which settings differ from {text.setting_name(subject.comparison.options.baseline)}",
        "Mean differences of runs with the same seed, with their 95 % BCa bootstrap intervals. Whether a difference is shown is decided by"
        " the exact test of the table, not by the interval." + _first_settings(subject, chart is not None),
        chart,
        _why_no_seeds(subject),
        by_rows=True,
    )


def _validation(name: str, subject: Subject) -> Figure:
    metric = text.metric_name(subject.comparison.metric)
    return Figure(
        name,
        f"Validation {metric} in the course of training",
        f"Validation {metric} at every evaluation, one line per run. Dashed: runs that did not complete.",
        plots.validation(subject.comparison),
        "No evaluation of the validation split was recorded.",
    )


def _active(name: str, subject: Subject) -> Figure:
    return Figure(
        name,
        "How much is still trained",
        "Share of parameter entries that each step could move, one line per run.",
        plots.active(subject.comparison),
        "No training step was recorded.",
    )


def _step_time(name: str, subject: Subject) -> Figure:
    return Figure(
        name,
        "How long a step takes",
        f"Median of up to {series.WINDOWS} equal windows of steps, statistics and freezing included, evaluation not. Of a class with more"
        f" than {series.CROWD} runs: their median, and the band from the tenth to the ninetieth percentile.",
        plots.step_time(subject.comparison),
        "No training step was recorded.",
    )


def _cost(field: str, label: str, axis: str, title: str, caption: str) -> Callable[[str, Subject], Figure]:
    def build(name: str, subject: Subject) -> Figure:
        rows, known = series.costs(subject.comparison), subject.comparison.runs.height
        more = "" if len(rows) == known else f" Drawn are the first {series.SHOWN_RUNS} of {known} runs, and the baselines."
        chart = plots.bars(rows, field, label, axis)
        return Figure(name, title, f"{caption} † ended early.{more}", chart, f"No {axis} were recorded.", by_rows=True)

    return build


def _schedule(name: str, subject: Subject) -> Figure:
    plan = series.schedule(subject.comparison, subject.run, subject.room) if subject.run else None
    caption = (
        "Groups in network order, input at the top; each row of a layer's band is one group, each cell one state of it over all steps that"
        " it had it. Vertical lines are freeze events."
    )
    if plan and plan.is_merged:
        caption += f" Of its {plan.groups} groups, neighbours in a layer that froze at the same step share a cell."
    if plan and plan.hidden_names:
        caption += f" {text.count(plan.hidden_names, 'layer')} have no room for their names."
    if plan and plan.thaws:
        caption += " Groups thawed in this run; the records say how many, not which, until all were active."
    return Figure(
        name,
        f"When each group froze{f' in {subject.run}' if subject.run else ''}",
        caption,
        plots_run.schedule(plan) if plan else None,
        "This run recorded no groups or no steps." if subject.run else _NO_RUN,
        by_rows=True,
    )


def _drift(name: str, subject: Subject) -> Figure:
    return Figure(
        name,
        f"How much the Fisher distributions still move{f' in {subject.run}' if subject.run else ''}",
        "One point per drift update: mean smoothed drift over the groups of a layer kind that were still measured. Vertical lines are"
        " freeze events, after which fewer groups are averaged. Kinds beyond the six most common are drawn together.",
        plots_run.drift(subject.comparison, subject.run) if subject.run else None,
        "No drift was recorded for this run." if subject.run else _NO_RUN,
    )


def _score(name: str, subject: Subject) -> Figure:
    return Figure(
        name,
        f"What the policy compared with its threshold{f' in {subject.run}' if subject.run else ''}",
        "Mean score over the measured groups of a layer kind. Diamonds are the thresholds of the decisions: active groups whose score lay"
        " below froze, within floor and cap.",
        plots_run.score(subject.comparison, subject.run) if subject.run else None,
        "No drift was recorded for this run, so there was no score." if subject.run else _NO_RUN,
    )


def _importance(name: str, subject: Subject) -> Figure:
    insight = subject.insight
    why = "Nobody asked what the search says."
    if insight:
        objectives = [objective.metric for objective in subject.comparison.objectives]
        why = " ".join(sentences([insight], objectives)[-1:]) or "No trial has completed."
    if not subject.comparison.studies[0].spec["search"]:
        why = "The study searched nothing."
    best = text.percent(insight.best_share) if insight else ""
    return Figure(
        name,
        "Which settings matter",
        f"How much a setting decides whether a trial is among the best {best} by an objective (PED-ANOVA,"
        f" {text.count(insight.trials if insight else 0, 'trial')}); shares sum to 1. The same numbers as fat-ray compare --search.",
        plots_search.importance(insight) if insight else None,
        why,
        by_rows=True,
    )


def _parallel(name: str, subject: Subject) -> Figure:
    searched = bool(subject.comparison.studies[0].spec["search"])
    return Figure(
        name,
        "Which settings lead where",
        "Each completed trial is a line through its settings and objectives, coloured by the first objective; strong lines are on the"
        " Pareto front. Every axis runs from its least to its largest value.",
        plots_search.parallel(subject.comparison) if searched else None,
        "Fewer than two trials have completed." if searched else "The study searched nothing.",
    )


def _landscape(name: str, subject: Subject) -> Figure:
    metric, trials = text.metric_name(subject.comparison.metric), len(search_space.trials(subject.comparison))
    width = text.percent(search_space.window_share(trials)) if trials else ""
    return Figure(
        name,
        f"Where {metric} is high: threshold and freeze window",
        f"Points are completed trials. Each band is a mean of the trials near by, weighted by a Gaussian window of {width} of each axis;"
        " places without a trial within two widths are blank. Other settings differ between the trials too.",
        plots_search.landscape(subject.comparison),
        search_space.why_no_map(subject.comparison),
    )


FIGURES: dict[str, Callable[[str, Subject], Figure]] = {
    "tradeoff": _tradeoff,
    "tradeoff-time": _tradeoff_time,
    "zero-shot": _zero_shot,
    "seeds": _seeds,
    "differences": _differences,
    "validation": _validation,
    "active": _active,
    "step-time": _step_time,
    "schedule": _schedule,
    "drift": _drift,
    "score": _score,
    "importance": _importance,
    "landscape": _landscape,
    "parallel": _parallel,
    "cost-time": _cost(
        "train_s", "train_text", "training seconds", "What training took", "Wall-clock seconds in optimizer steps, evaluation not included."
    ),
    "cost-flops": _cost("flops", "flops_text", "training FLOPs", "What was computed", "Analytic FLOPs of forward and backward."),
}
"""How each figure is made, in the order of the report."""

SECTIONS: Sequence[tuple[str, str, Sequence[str]]] = (
    ("tradeoff", "What it costs to keep parameters active", ("tradeoff", "tradeoff-time")),
    ("zero-shot", "On data from elsewhere", ("zero-shot",)),
    ("seeds", "How sure it is", ("seeds", "differences")),
    ("course", "Over the course of training", ("validation", "active", "step-time")),
    ("schedule", "The freeze schedule", ("schedule",)),
    ("drift", "What the freezing was decided by", ("drift", "score")),
    ("search", "What the search says of its settings", ("importance", "landscape", "parallel")),
    ("cost", "Cost", ("cost-time", "cost-flops")),
)
"""The report's sections with figures: id, heading, names."""
