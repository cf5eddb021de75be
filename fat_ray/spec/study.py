"""A study: a base run, what is searched around it, how it is judged, and what it may cost."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fat_ray.spec.base import Count, Name, Positive, Strict
from fat_ray.spec.run import RunSpec

Scalar = bool | int | float | str | None


class FloatRange(Strict):
    """A real number between `low` and `high`, both included."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self)
        return self


class IntRange(Strict):
    """An integer between `low` and `high`, both included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: Count = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self)
        return self


class Choice(Strict):
    """One of the listed values."""

    type: Literal["categorical"]
    choices: Annotated[list[Scalar], Field(min_length=1)]


def _check_range(given: FloatRange | IntRange) -> None:
    if given.low > given.high:
        raise ValueError(f"low = {given.low} is greater than high = {given.high}")
    if given.log and given.low <= 0:
        raise ValueError(f"log: true needs low > 0, not {given.low}")
    if given.log and given.step not in (None, 1):
        raise ValueError("log: true and step cannot be combined")


def _type(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind in ("float", "int", "categorical") else None


Distribution = Annotated[
    Annotated[FloatRange, Tag("float")] | Annotated[IntRange, Tag("int")] | Annotated[Choice, Tag("categorical")],
    Discriminator(
        _type,
        custom_error_type="unknown_distribution",
        custom_error_message="needs type: float, int or categorical",
    ),
]


class Objective(Strict):
    """A number that the search improves: a metric of the validation split, or a cost."""

    metric: Annotated[str, Field(pattern=r"^(val/[a-z0-9_]+|mean_active|mean_active_fraction|worker_s|train_s|flops)$")]
    """`val/<metric of the task>` at the last step, or `mean_active`, `mean_active_fraction`, `worker_s`, `train_s`, `flops`.
    Test and zero-shot metrics are refused: a search must not see them."""
    direction: Literal["maximize", "minimize"]


class SamplerSpec(Strict):
    """Who suggests settings, by Optuna's name."""

    name: Literal["tpe", "random", "qmc", "nsga2"] = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    startup_trials: Count = 4
    """tpe only: random trials before the model is used."""


class SchedulerSpec(Strict):
    """Who stops trials early. A stopped trial is pruned: it never counts as a result."""

    name: Literal["asha", "median", "none"] = "none"
    metric: Annotated[str, Field(pattern=r"^val/[a-z0-9_]+$")] = "val/f1"
    direction: Literal["maximize", "minimize"] = "maximize"
    grace_steps: Count = 1
    """No trial is stopped before this step."""
    reduction: Annotated[float, Field(gt=1)] = 2.0
    """asha only: of this many trials at a rung, one goes on; 1.5 lets two thirds go on."""


class BudgetSpec(Strict):
    """What the search may use. Baselines are not counted in `trials`."""

    trials: Count = 10
    hours: Positive | None = None
    """Wall-clock limit of the whole study; running trials are stopped then."""
    concurrency: Count | None = None
    """Trials that run at the same time; null: as many as the cluster holds."""
    placement_timeout_s: Positive = 120.0
    """Stock executor only: a trial whose workers cannot be placed within this time fails with the reason. Warm trials wait in Tune."""


class WandbSpec(Strict):
    """The Weights & Biases mirror. Records in Parquet do not depend on it."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")] = "fat_ray"
    entity: str | None = None


class StudySpec(RunSpec):
    """A whole study file."""

    name: Name
    search: dict[str, Distribution] = {}
    """Dotted field of the run, such as `freeze.threshold`, to the values it may take."""
    objectives: Annotated[list[Objective], Field(min_length=1, max_length=3)] = [
        Objective(metric="val/f1", direction="maximize"),
        Objective(metric="mean_active", direction="minimize"),
    ]
    sampler: SamplerSpec = SamplerSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    budget: BudgetSpec = BudgetSpec()
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [0]
    """Each setting is run once per seed; its objectives are the means."""
    baselines: list[Literal["none", "random_matched"]] = ["none", "random_matched"]
    """Reference policies run with the same data, order and budget."""
    executor: Literal["stock", "warm"] = "stock"
    """How Ray Train is used; see docs/decisions."""
    wandb: WandbSpec = WandbSpec()
    output: str = "out"
    """Directory in which the study's own directory `<output>/<name>` is made."""

    @property
    def run(self) -> RunSpec:
        """The base run of the study."""
        return RunSpec.model_validate({name: getattr(self, name) for name in RunSpec.model_fields})

    @model_validator(mode="after")
    def _check(self) -> Self:
        listed = {
            "seeds": [str(seed) for seed in self.seeds],
            "baselines": [str(label) for label in self.baselines],
            "objectives": [objective.metric for objective in self.objectives],
        }
        for label, values in listed.items():
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"{label} lists {', '.join(repeated)} more than once")
        return self


def as_json(spec: RunSpec) -> dict[str, Any]:
    """The specification as plain JSON types; `model_validate` in JSON mode reads it back."""
    return spec.model_dump(mode="json")


def shown_objective(study: Mapping[str, Any]) -> Objective:
    """The metric that tables and charts show, and which way is better: the first objective on the validation split, else the scheduler's.

    Args:
        study: A study as `as_json` gives it and the manifest keeps it.
    """
    judged = (objective for objective in study["objectives"] if objective["metric"].startswith("val/"))
    shown = next(judged, study["scheduler"])
    return Objective(metric=shown["metric"], direction=shown["direction"])


def num_search_trials(study: Mapping[str, Any]) -> int:
    """Planned trials of the search; with nothing to search the base setting is run once.

    Args:
        study: As for `shown_objective`.
    """
    return int(study["budget"]["trials"]) if study["search"] else 1


def num_trials(study: Mapping[str, Any]) -> int:
    """Planned trials of the study, baselines included; each has one run per seed.

    Args:
        study: As for `shown_objective`.
    """
    return num_search_trials(study) + len(study["baselines"])
