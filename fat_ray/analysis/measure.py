"""The number of a run by which settings are compared over seeds, such as ``test/f1`` or ``flops``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from fat_ray.errors import InputError
from fat_ray.spec.path import shorten
from fat_ray.spec.study import COSTS, Objective

Direction = Literal["maximize", "minimize"]
ZERO_SHOT = "zero_shot"
"""As a split: the mean over all sets but `val` and `test`."""


@dataclass(frozen=True)
class Measure:
    """What is compared.

    Attributes:
        name: As it is given: ``<split>/<metric>``, or a cost.
        split: Evaluation set, or `ZERO_SHOT`; empty for a cost.
        metric: The task's metric; for a cost its column.
        direction: Which way is better.
    """

    name: str
    split: str
    metric: str
    direction: Direction

    @property
    def is_cost(self) -> bool:
        """Whether it is a cost of the run rather than a metric of its task."""
        return not self.split


def measure_of(given: str | None, shown: Objective, known: Sequence[Objective]) -> Measure:
    """The measure that is asked for.

    Args:
        given: ``<split>/<metric>`` or one of `COSTS`; None: the metric that the study shows.
        shown: That metric.
        known: Metrics whose direction is known. Of others, what is called a loss or an error is better when it is smaller, and
            everything else when it is larger.

    Raises:
        InputError: It has another form.
    """
    if given is None:
        return Measure(shown.metric, "val", shown.metric.removeprefix("val/"), shown.direction)
    if given in COSTS:
        return Measure(given, "", given, "minimize")
    split, slash, metric = given.partition("/")
    if not (split and slash and metric):
        raise InputError(f"--metric {shorten(given)}: must be SPLIT/METRIC, such as test/f1, or one of {', '.join(COSTS)}")
    stated = {objective.metric.removeprefix("val/"): objective.direction for objective in [*known, shown]}
    guessed: Direction = "minimize" if any(word in metric for word in ("loss", "error")) else "maximize"
    return Measure(given, split, metric, stated.get(metric, guessed))


def of_split(split: str) -> pl.Expr:
    """Whether a row of `evals` belongs to a split."""
    return ~pl.col("split").is_in(["val", "test"]) if split == ZERO_SHOT else pl.col("split") == split


def check_known(measure: Measure, evals: pl.DataFrame) -> None:
    """Makes sure that somebody recorded the metric on the split.

    Args:
        measure: What is compared.
        evals: Split and metric of what was recorded.

    Raises:
        InputError: Nobody did, though there are records.
    """
    if measure.is_cost or evals.is_empty() or evals.filter(of_split(measure.split) & (pl.col("metric") == measure.metric)).height:
        return
    pairs = evals.select("split", "metric").unique(maintain_order=True).iter_rows()
    known = [f"{split}/{metric}" for split, metric in pairs if not metric.startswith("constant_")]
    raise InputError(f"--metric {measure.name}: no run has recorded it; there are {', '.join(known)}, and the costs {', '.join(COSTS)}")
