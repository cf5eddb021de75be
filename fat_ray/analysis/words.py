"""The report's sentences: what was searched, what came out, what it saved, and what may not be concluded from it."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import polars as pl

from fat_ray.analysis.compare import FULL, Comparison
from fat_ray.analysis.conclusions import limits, seed_by_seed
from fat_ray.view import text

Row = dict[str, Any]


@dataclass(frozen=True)
class Fact:
    """One number of the summary: what it is, its value, and what it stands against."""

    label: str
    value: str
    detail: str


def states(comparison: Comparison) -> str:
    """How many runs there are and how they ended."""
    counted = Counter(comparison.runs["status"].to_list())
    return f"{text.count(comparison.runs.height, 'run')}: " + ", ".join(f"{number} {state}" for state, number in counted.most_common())


def searched(spec: Row) -> str:
    """What was searched, with what and how long."""
    train, seeds = spec["train"], spec["seeds"]
    ranges = [f"{key} ({_range(distribution)})" for key, distribution in spec["search"].items()]
    what = "The study searched nothing: it runs its base settings."
    if ranges:
        effort = f"{text.count(spec['budget']['trials'], 'trial')} ({spec['sampler']['name']} sampler)"
        what = f"The study searched {text.listing(ranges)} with {effort}."
    goals = text.listing(f"{objective['direction']} {objective['metric']}" for objective in spec["objectives"])
    run = (
        f"Each run fine-tunes {spec['task']['name']} for {text.count(train['steps'], 'step')}"
        f" of batch {train['global_batch']} on {text.count(train['workers'], 'worker')}; {text.count(len(seeds), 'seed')} per setting."
    )
    return f"{what} {run} Objectives: {goals}."


def _range(distribution: Row) -> str:
    if distribution["type"] == "categorical":
        return "one of " + ", ".join(text.scalar(choice) for choice in distribution["choices"])
    low, high = text.scalar(distribution["low"]), text.scalar(distribution["high"])
    return f"{low} to {high}" + (", log scale" if distribution.get("log") else "")


def outcome(comparison: Comparison) -> str:
    """What came out: the best compromise against full fine-tuning, matched random freezing and the constant prediction."""
    best, metric = comparison.best, text.metric_name(comparison.metric)
    if best is None:
        return "No trial has completed, so there is no result to report yet."
    full, matched = baseline(comparison, FULL), baseline(comparison, "random_matched")
    goals = [objective.metric for objective in comparison.objectives]
    praise = f"the best compromise between {text.listing(goals)}" if len(goals) > 1 else f"the best setting by {goals[0]}"
    budget = text.count(comparison.studies[0].spec["train"]["steps"], "step")
    parts = [
        f"At the budget of {budget}, {praise} is {text.setting_name(best['setting'])}:"
        f" validation {metric} {_mean(best, 'val_last')}"
        + (f", where full fine-tuning reached {_mean(full, 'val_last')}." if full else ".")
    ]
    if full and best["delta_val_mean"] is not None:
        share, flops, time = best["mean_active_fraction_mean"], best["flops_ratio_mean"], best["train_s_ratio_mean"]
        parts.append(
            f"It trained {text.percent(share)} of the parameters on average, with {text.ratio(flops)} the FLOPs"
            f" and {text.ratio(time)} the training time of full fine-tuning."
        )
    if different := seed_by_seed(comparison, best):
        parts.append(different)
    if matched:
        parts.append(f"Freezing a matched number of parameters at random reached {_mean(matched, 'val_last')}.")
    constant = comparison.references["val"].drop_nulls().to_list()
    if constant:
        parts.append(f"A constant prediction scores {text.score(constant[0])}.")
    return " ".join(parts)


def baseline(comparison: Comparison, label: str) -> Row | None:
    """A baseline's row of `settings` in the first study, once a run of it completed."""
    study = comparison.studies[0].key
    found = comparison.settings.filter(
        (pl.col("study") == study) & (pl.col("role") == "baseline") & (pl.col("label") == label) & (pl.col("completed") > 0)
    )
    return next(found.iter_rows(named=True), None)


def _mean(row: Row, name: str) -> str:
    mean, deviation = row[f"{name}_mean"], row[f"{name}_sd"]
    return text.score(mean) + ("" if deviation is None else f" ± {text.score(deviation)} (n = {row['completed']})")


_COMPARED = {
    "Training FLOPs": "flops",
    "Training time": "train_s",
    "Bytes communicated": "comm_bytes",
    "Optimizer state": "mean_optimizer_bytes",
    "Peak memory of a step": "mean_peak_memory_bytes",
}
"""What is said of costs; of those after the time only what is known: one worker communicates nothing, old records say nothing."""


def facts(comparison: Comparison) -> list[Fact]:
    """The numbers that a reader looks for first; empty while no trial has completed."""
    best, full = comparison.best, baseline(comparison, FULL)
    if best is None:
        return []
    metric = text.metric_name(comparison.metric)

    def against(name: str) -> str:
        return f"full fine-tuning {text.score(full[f'{name}_mean'])}" if full else "no completed full fine-tuning"

    costs = [
        Fact(
            "Active parameters, N̄", text.percent(best["mean_active_fraction_mean"]), f"{text.quantity(best['mean_active_mean'])} on average"
        ),
        *(
            Fact(title, text.ratio(ratio), _saving(ratio))
            for title, cost in _COMPARED.items()
            if (ratio := best[f"{cost}_ratio_mean"]) is not None or cost in {"flops", "train_s"}
        ),
    ]
    return [
        Fact(f"Validation {metric}, at budget", text.score(best["val_last_mean"]), against("val_last")),
        Fact(f"Test {metric}, at budget", text.score(best["test_last_mean"]), against("test_last")),
        *costs,
    ]


def _saving(ratio: float | None) -> str:
    if ratio is None:
        return "no completed full fine-tuning"
    change = round(100 * abs(1 - ratio))
    if not change:
        return "as full fine-tuning"
    return f"{change}\N{NO-BREAK SPACE}% {'less' if ratio < 1 else 'more'} than full fine-tuning"


def caveats(comparison: Comparison) -> list[str]:
    """What may not be concluded, and why."""
    runs, said = comparison.runs, list[str]()
    seeds = len(comparison.studies[0].spec["seeds"])
    if seeds == 1:
        said.append(
            "One seed per setting: a difference between two runs includes the noise of single trainings. No claim about significance."
        )
    else:
        said += [f"{seeds} seeds per setting: means ± sample standard deviations.", *limits(comparison)]
    if comparison.best is not None:
        said.append(
            "This setting was picked on the validation split, so its validation value is optimistic;"
            " the search did not see the test and zero-shot splits."
        )
        said.append("Wall-clock times include what else ran on the machine at that time, such as other trials; FLOPs do not.")
    running = int((runs["status"] == "running").sum())
    if running:
        said.append(f"{text.count(running, 'run')} without an end yet (or killed before writing one): this is a snapshot.")
    ended = int(runs["partial"].sum()) - running
    if ended:
        said.append(f"{text.count(ended, 'run')} ended early. Values marked † are partial: not comparable, not ranked, never on the front.")
    return [*said, *comparison.damage, *comparison.notes]


GLOSSARY = {
    "setting, trial, run": "A trial is one setting suggested by the search; a run is one training of a trial or baseline with one seed.",
    "last": "The value at a run's latest evaluation, whenever that was; partial (†) unless the run completed.",
    "at budget": "The value after the last planned step, which only completed runs have. Ranks, the front and all differences use it.",
    "best": "The most favourable of all evaluations of a run. It picks its own moment and is optimistic; nothing is ranked by it.",
    "pruned": "Stopped early by the study's scheduler. Its values are partial (†): they belong to fewer steps than others.",
    "running": "Started, and no end is recorded.",
    "group": "A set of parameter entries that freeze together, such as four rows of a convolution with their biases.",
    "active fraction": "Share of parameter entries (not of groups) that the optimizer may still move.",
    "N̄": "Mean over the steps of the number of active parameters: the cost measure of the method's paper.",
    "drift": "Distance between consecutive Fisher distributions of a group. Groups that drift little are frozen.",
    "freeze event": "A step at which the policy decides which groups freeze. Frozen groups stay frozen.",
    "Pareto front (★)": "Completed settings that no other completed setting beats in all objectives at once.",
    "full fine-tuning": "The baseline `none`: every parameter stays active.",
    "random matched": "A baseline that freezes as many parameters as a recorded schedule did, chosen at random.",
    "constant prediction": "The score of a model that predicts the same for every input: what must be beaten.",
    "95 % interval": "BCa bootstrap over the seeds. With few seeds it is too narrow.",
    "p, Holm": "Exact paired permutation test against full fine-tuning with the same seeds; corrected for the number of settings compared.",
    "effect, g_z": "The mean difference in standard deviations of the differences, corrected for few seeds.",
    "zero-shot": "Evaluation on data from elsewhere without training on it. For the embedded cracks it is a proxy: the test split under"
    " blur, noise, contrast and lighting shifts, whose strengths were chosen by looking at one model.",
    "FLOPs": "Analytic floating point operations of forward and backward passes, two per multiply-add.",
    "bytes communicated (sent)": "What each worker gave to collectives over the run: gradients, buffers, statistics and agreements.",
    "optimizer state": "Bytes of the optimizer's state on each worker, mean over the steps.",
    "peak memory": "The most memory in use during a step on the first worker. Against full fine-tuning: the mean over the steps, since the"
    " highest peak of a run lies before its first freeze. On a CPU it is that of the whole process.",
    "training time": "Wall-clock seconds of the optimizer steps on the first worker, without evaluation.",
}
