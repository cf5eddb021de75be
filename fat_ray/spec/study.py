"""A study: a base run, what is searched around it, how it is judged, and what it may cost."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from fat_ray.spec.base import Count, Name, NonNegative, Positive, Strict
from fat_ray.spec.baseline import Baseline, BaselineSpec, as_section
from fat_ray.spec.run import RunSpec
from fat_ray.spec.space import Distribution, grid, lookup

COSTS = ("mean_active", "mean_active_fraction", "worker_s", "train_s", "flops")
"""Objectives that are costs of a run, not metrics of its task."""


class Objective(Strict):
    """A number that the search improves: a metric of the validation split, or a cost."""

    metric: Annotated[str, Field(pattern=r"^(val/[a-z0-9_]+|mean_active|mean_active_fraction|worker_s|train_s|flops)$")]
    """`val/<metric of the task>` at the last step, or `mean_active`, `mean_active_fraction`, `worker_s`, `train_s`, `flops`.
    Test and zero-shot metrics are refused: a search must not see them."""
    direction: Literal["maximize", "minimize"]


class SamplerSpec(Strict):
    """Who suggests settings, by Optuna's name."""

    name: Literal["tpe", "gp", "nsga2", "nsga3", "cmaes", "qmc", "random", "grid"] = "tpe"
    """tpe: multivariate and grouped, so that conditional parameters are modelled too; gp, nsga2 and nsga3 draw those at random, cmaes
    refuses them. cmaes needs one objective and two numbers or more; grid needs countable values."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Trial k depends on this, on k, and on how the trials before it ended, on nothing else: a resumed study goes on as if nothing had
    happened."""
    startup_trials: Count = 4
    """tpe and gp: trials that completed (for tpe also pruned ones) before the model is used."""
    population: Annotated[int, Field(ge=2, lt=2**31)] | None = None
    """nsga2, nsga3 and cmaes: trials per generation; null: for cmaes by the number of parameters, else 50 or a quarter of the trials,
    whichever is less, but at least 4."""


class SchedulerSpec(Strict):
    """Who stops trials early. A stopped trial is pruned: it never counts as a result."""

    name: Literal["asha", "hyperband", "median", "patience", "none"] = "none"
    """asha: at each rung (grace_steps times powers of reduction) the best 1/reduction go on; hyperband: several of these with later and
    later first rungs; median: a trial whose best value lies below the median of the others' means stops; patience: one that no longer
    improves stops. With several seeds the running mean is judged (docs/decisions/0007)."""
    metric: Annotated[str, Field(pattern=r"^val/[a-z0-9_]+$")] = "val/f1"
    direction: Literal["maximize", "minimize"] = "maximize"
    grace_steps: Count = 1
    """No trial is stopped before this step."""
    reduction: Annotated[float, Field(gt=1)] = 2.0
    """asha and hyperband: of this many trials at a rung, one goes on; 1.5 lets two thirds go on."""
    patience: Count = 3
    """patience only: evaluations in a row without an improvement after which a trial stops."""
    min_delta: NonNegative = 0.0
    """patience only: what counts as an improvement is more than this."""


class BudgetSpec(Strict):
    """What the search may use. Baselines are not counted in `trials`."""

    trials: Count = 10
    hours: Positive | None = None
    """Wall-clock limit of the whole study; running trials are stopped then."""
    worker_s: Positive | None = None
    """Limit of worker-seconds over all runs, baselines included (3600 with one GPU per worker are a GPU-hour), counted at evaluations;
    running trials are stopped then."""
    flops: Positive | None = None
    """Limit of analytic floating point operations over all runs, likewise."""
    patience_trials: Count | None = None
    """The search ends when the front's hypervolume has not grown by more than a thousandth of the objectives' ranges for this many trials
    in a row that completed or were pruned; running trials are trained to their end."""
    concurrency: Count | None = None
    """Trials that run at the same time; null: as many as the cluster holds."""
    placement_timeout_s: Positive = 120.0
    """The study ends, with the numbers, when its cluster has been too small for a run for so long, since nodes left. As long as the cluster
    is large enough and others use it, trials wait."""


class WandbSpec(Strict):
    """The Weights & Biases mirror. Records in Parquet do not depend on it."""

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """auto: what WANDB_MODE says, or else online where there is a key, and offline where there is none."""
    project: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")] = "fat_ray"
    entity: str | None = None


def _with_warm_start(schema: dict[str, Any]) -> None:
    """The JSON Schema of `search`: one of its keys is no field."""
    schema["properties"] = {"warm_start": {"enum": ["none", "replay"], "type": "string"}}


class StudySpec(RunSpec):
    """A whole study file."""

    name: Name
    search: Annotated[dict[str, Distribution], Field(json_schema_extra=_with_warm_start)] = {}
    """Dotted field of the run, such as `freeze.threshold`, to the values it may take; and `warm_start`."""
    warm_start: Literal["none", "replay"] = "none"
    """Where a search begins; written `search: {warm_start: replay}`. none: wherever the sampler's first trials fall; replay: spread over
    the range of mean_active that a replay foretells, from a baseline that records drift without freezing, such as
    `{name: observed, policy: none, set: {fisher.record: always}}`."""
    objectives: Annotated[list[Objective], Field(min_length=1, max_length=3)] = [
        Objective(metric="val/f1", direction="maximize"),
        Objective(metric="mean_active", direction="minimize"),
    ]
    sampler: SamplerSpec = SamplerSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    budget: BudgetSpec = BudgetSpec()
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [0]
    """Each setting is run once per seed; its objectives are the means."""
    baselines: list[Baseline] = ["none", "random_matched"]
    """Reference runs with the same data, order and budget, before the search: policies, or sections with name, policy and set. One with
    policy random_matched comes after the search, since it follows a schedule of it."""
    executor: Literal["warm", "stock"] = "warm"
    """warm: the worker processes of a trial are kept for the next one; it falls back to stock where Ray is not the version that it knows.
    stock: Ray Train's public way, new processes for each run, some 15 s each (docs/decisions/0004)."""
    wandb: WandbSpec = WandbSpec()
    output: str = "out"
    """Directory in which the study's own directory `<output>/<name>` is made."""

    @model_validator(mode="before")
    @classmethod
    def _take_warm_start(cls, given: Any) -> Any:
        """In a file it stands among what is searched, whose other keys are fields."""
        search = given.get("search") if isinstance(given, dict) else None
        if not isinstance(search, dict) or "warm_start" not in search:
            return given
        return {**given, "search": {key: value for key, value in search.items() if key != "warm_start"}, "warm_start": search["warm_start"]}

    @property
    def run(self) -> RunSpec:
        """The base run of the study."""
        return RunSpec.model_validate({name: getattr(self, name) for name in RunSpec.model_fields})

    @property
    def references(self) -> list[BaselineSpec]:
        """The baselines in full."""
        return [as_section(given) for given in self.baselines]

    @model_validator(mode="after")
    def _check(self) -> Self:
        listed = {
            "seeds": [str(seed) for seed in self.seeds],
            "baselines": [baseline.name for baseline in self.references],
            "objectives": [objective.metric for objective in self.objectives],
        }
        for label, values in listed.items():
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"{label} lists {', '.join(repeated)} more than once")
        return self


_SPACE: TypeAdapter[dict[str, Distribution]] = TypeAdapter(dict[str, Distribution])


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
    """Planned trials of the search: its budget, or the whole grid if that is less; with nothing to search the base setting is run once.

    Args:
        study: As for `shown_objective`.
    """
    if not study["search"]:
        return 1
    trials = int(study["budget"]["trials"])
    if study["sampler"]["name"] != "grid":
        return trials
    return min(trials, len(grid(_SPACE.validate_python(study["search"]), lambda key: lookup(study, key))))


def num_trials(study: Mapping[str, Any]) -> int:
    """Planned trials of the study, baselines included; each has one run per seed.

    Args:
        study: As for `shown_objective`.
    """
    return num_search_trials(study) + len(study["baselines"])
