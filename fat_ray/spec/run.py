"""One run: what is trained, how, what is measured, and when groups freeze. A trial of a study is one of these per seed."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fat_ray.spec.base import Count, Decay, Fraction, NonNegative, Positive, PositiveFraction, Strict
from fat_ray.spec.policy import PolicyName
from fat_ray.spec.task import CrackSegmentationSpec, TaskSpec


class OptimizerSpec(Strict):
    """The optimizer, by its name in torch.optim."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Acts on active entries only."""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    """AdamW only."""
    momentum: Decay = 0.9
    """SGD only."""


class ScheduleSpec(Strict):
    """The learning rate over the steps: linear warm-up, then the named curve down to `final_fraction` of the peak."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_fraction: Fraction = 0.0


class CheckpointSpec(Strict):
    """What is kept to go on from when a run is interrupted, and to export at its end."""

    every: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Steps between checkpoints; null: one at each evaluation; 0: none at all. The last step has one too."""
    keep: Count = 2
    """Checkpoints kept of each run: the newest, and those before it in case the newest is damaged."""
    retain: Literal["front", "all"] = "front"
    """Whose checkpoints a search keeps when a trial has ended. front: those of the Pareto front, which the best is on; all: everybody's."""


class TrainSpec(Strict):
    """How long, on what and with how many workers."""

    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    steps: Count = 100
    """Optimizer steps of a full run: the budget at which runs are compared."""
    global_batch: Count = 8
    """Examples per optimizer step over all workers; divisible by `workers`."""
    evaluate_every: Count = 25
    """Steps between evaluations of the validation split. The last step is always evaluated, on every split."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast for forward and backward; parameters, optimizer and statistics stay float32."""
    clip_norm: Positive | None = 1.0
    """Largest L2 norm of the gradient over active entries; null: no clipping."""
    workers: Count = 1
    """DDP processes of one run."""
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: NonNegative = 0.0
    """0: train on CPU. Below 1 the workers of a run share GPUs, as many on each as fit; above 1 a whole number."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """auto: nccl where each worker has a GPU of its own (gpus_per_worker >= 1), else gloo."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    retries: Annotated[int, Field(ge=0, le=100)] = 1
    """How often a run goes on by itself, from its newest checkpoint, after the process of a worker died. An error of the task ends it."""
    stall_timeout_s: Positive = 600.0
    """Longest wait of one worker for another, and of Ray for a sign of a worker: one that is silent for longer (a frozen process, a host
    that was cut off) counts as dead. Must exceed what a worker computes alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.global_batch % self.workers:
            raise ValueError(f"global_batch = {self.global_batch} must be divisible by workers = {self.workers}")
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(f"gpus_per_worker = {self.gpus_per_worker:g} must be a whole number, or less than 1 for a share of a GPU")
        if self.backend == "nccl" and not self.gpus_per_worker:
            raise ValueError("backend nccl needs gpus_per_worker > 0")
        if self.backend == "nccl" and self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError("backend nccl refuses two workers on one GPU: use auto or gloo where gpus_per_worker < 1")
        return self


class GroupSpec(Strict):
    """How parameters are cut into groups that freeze together."""

    along: Literal["rows", "columns"] = "rows"
    """rows: blocks of dimension 0 (outputs); columns: blocks of dimension 1 (inputs), vectors stay whole."""
    blocks: Count = 4
    """Blocks k per tensor."""
    min_block: Count = 4
    """A tensor is cut into fewer blocks rather than into blocks of fewer rows (or columns) than this."""
    bias: Literal["with_rows", "apart"] = "with_rows"
    """with_rows: bias entries join the rows of their weight, and the vectors of a norm are one group; apart: each tensor by itself."""
    split_qkv: bool = False
    """Cut the rows of a module whose path ends in `.attn.qkv` into query, key and value first."""


class FisherSpec(Strict):
    """How the diagonal Fisher information is estimated (docs/method.md, section 1)."""

    every: Count = 4
    """Collection window m: statistics are collected every so many steps."""
    record: Literal["policy", "always"] = "policy"
    """Who has drift measured and recorded. policy: only a policy that decides by it; always: every run, so that `fat-ray replay` can tell
    what Fisher drift would have frozen."""
    groups: GroupSpec = GroupSpec()
    estimator: Literal["kronecker", "squared_gradient"] = "kronecker"
    """kronecker: products of the factors of a layer; squared_gradient: the square of the mean gradient, for every parameter."""
    formulas: Literal["exact", "released"] = "exact"
    """released: the factors of the released code, its errors included; Linear, Conv2d, BatchNorm2d and LayerNorm only."""
    average: Literal["bias_corrected", "decayed", "reset", "none"] = "bias_corrected"
    """Running average of the factors. bias_corrected: from zero, divided by 1 - γ^count; decayed: from the first estimate; reset: from
    one at every collection, as released; none: each collection stands alone."""
    decay: Decay = 0.8
    """γ of the running average."""
    uncovered: Literal["squared_gradient", "zero"] = "squared_gradient"
    """Parameters without factors. zero: their Fisher is 0, and they freeze at step 0, as released."""


class DriftSpec(Strict):
    """How two Fisher states of a group are compared."""

    compare: Literal["previous", "average"] = "previous"
    """What the new state is compared with: the previous one, or an element-wise average of all before (4 bytes per parameter)."""
    compare_decay: Decay = 0.9
    """Decay of that element-wise average."""
    distance: Literal["log", "raw"] = "log"
    """log: histograms of log10(|F| + 1e-12) between joint percentiles; raw: of |F| between joint minimum and maximum."""
    bins: Annotated[int, Field(ge=2, le=4096)] | Literal["auto"] = 64
    """Histogram bins; auto: 2·n^(1/3) for a group of n entries, between 8 and 64."""
    centre: Literal["median", "none"] = "median"
    """median: subtract each state's median log10 before binning, which makes the distance independent of scale."""
    noise: Literal["swap", "none"] = "swap"
    """swap: subtract the divergence expected from sampling noise alone, estimated from two halves of each batch."""
    smoothing: Decay = 0.9
    """β of the exponential average of the distance."""
    start: Literal["corrected", "zero"] = "corrected"
    """corrected: the average's start at zero is divided out; zero: the first update counts as a distance of 0, as released."""
    score: Literal["mean", "last", "total_variation"] = "mean"
    """What the policy compares: mean of the smoothed distances since the start, the last one, or the sum of their changes."""


class FreezeSpec(Strict):
    """Who decides what freezes, and when. A field that the policy does not use has no effect."""

    policy: PolicyName = "fisher_drift"
    """Who decides (docs/method.md, section 7): fisher_drift, none, head_only, bitfit, norm_only, linear_schedule, freezeout,
    gradual_unfreeze, gradient_norm, fish_mask, lora, random_matched; or one of your own, as `module:function` or by the name of an
    entry point in the group `fat_ray.policies`."""
    threshold: float = -0.5
    """fisher_drift: λ, groups whose score lies below mean + λ·std over the active groups freeze. Zero or more freezes most groups at
    once."""
    every: Count = 12
    """fisher_drift, gradient_norm, linear_schedule: freeze window n, steps between decisions."""
    warmup_steps: Annotated[int, Field(ge=0)] = 12
    """fisher_drift, gradient_norm, linear_schedule, fish_mask: no decision before this step."""
    floor: Fraction = 0.05
    """fisher_drift, gradient_norm: smallest fraction of elements that stays active."""
    cap: PositiveFraction = 0.5
    """fisher_drift: largest fraction of the active elements that one event may freeze."""
    confidence: NonNegative = 0.0
    """fisher_drift: a group freezes only if its score plus this many of its standard errors lies below the threshold."""
    follow: str | None = None
    """random_matched: the run whose recorded schedule is followed; null: that of the same study's best compromise."""
    head: list[str] | None = None
    """head_only, gradual_unfreeze, and the three of `train_head`: paths of the modules that are the head; null: what the model's
    attribute `head_modules` says, else the last child that owns trainable parameters."""
    train_head: bool = True
    """bitfit, norm_only, lora: the head trains too, and lora gives it no adapters."""
    keep: PositiveFraction = 0.1
    """fish_mask: largest fraction of elements that stays active."""
    final_active: Fraction = 0.1
    """linear_schedule: fraction of elements that is active at the end of the schedule."""
    until: PositiveFraction = 0.8
    """linear_schedule: fraction of the steps at which the schedule ends."""
    first_freeze: PositiveFraction = 0.8
    """freezeout: t_0, when the first layer freezes, as a fraction of the steps, before it is cubed."""
    cubed: bool = True
    """freezeout: freeze times are cubed, so that early layers freeze much earlier."""
    scaled: bool = True
    """freezeout: the learning rate of a layer is divided by its freeze time, so that all layers go as far."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 50.0
    """gradient_norm: layers freeze whose gradient norm changed less than this percentile of the active layers' changes."""
    thaw_every: Count = 12
    """gradual_unfreeze: steps until the next stage below the head thaws."""
    stages: Count = 4
    """gradual_unfreeze: parts of equally many layers below the head, thawed from the last to the first."""
    rank: Count = 8
    """lora: rank r of the adapters."""
    alpha: Count = 16
    """lora: adapters are scaled by alpha / rank."""
    targets: list[str] | None = None
    """lora: layers that get adapters, each a path or the end of one; null: every Linear and convolution outside the head that allows
    merging."""
    options: dict[str, Any] = {}
    """A policy of your own: whatever it understands."""
    frozen_statistics: Literal["move", "hold"] = "move"
    """Norms with running statistics of which all parameters are frozen. move: they normalise by the batch and update their statistics, as
    in plain training; hold: they normalise by their statistics, which stand still."""
    cache_prefix_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes on each worker in which outputs of the frozen prefix are remembered for examples that come again; 0: none."""


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "corrected": {},
    "paper": {
        "fisher": {"groups": {"along": "columns", "min_block": 1}, "average": "decayed"},
        "drift": {"centre": "none", "noise": "none", "start": "zero"},
        "freeze": {"threshold": -0.9, "warmup_steps": 0, "floor": 0.0, "cap": 1.0},
    },
    "released": {
        "fisher": {
            "groups": {"min_block": 1, "bias": "apart", "split_qkv": True},
            "formulas": "released",
            "average": "reset",
            "decay": 0.2,
            "uncovered": "zero",
        },
        "drift": {"compare": "average", "centre": "none", "noise": "none", "start": "zero", "score": "total_variation"},
        "freeze": {"threshold": -0.9, "warmup_steps": 0, "floor": 0.0, "cap": 1.0},
    },
}
"""What a preset sets; every other field keeps its default. The defaults themselves are `corrected`."""

REPLAYED = (
    "freeze.threshold",
    "freeze.every",
    "freeze.warmup_steps",
    "freeze.floor",
    "freeze.cap",
    "freeze.confidence",
    "drift.smoothing",
    "drift.start",
    "drift.score",
    "fisher.every",
)
"""Fields of a run that decide what becomes of measured distances, and so can be replayed. All others decide what is trained, or how
distances are measured."""


class MethodSpec(Strict):
    """What is measured, and when groups freeze: all that `freeze.freezer.Freezer` has to know."""

    preset: Literal["corrected", "paper", "released"] = "corrected"
    """Values for fisher, drift and freeze: this project's method, the paper's, or the released code's. A field given beside it wins."""
    fisher: FisherSpec = FisherSpec()
    drift: DriftSpec = DriftSpec()
    freeze: FreezeSpec = FreezeSpec()

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        """Fills in what the preset says under what the author wrote; sections that are built already are complete."""
        preset = given.get("preset", "corrected") if isinstance(given, dict) else None
        return merge(PRESETS[preset], given) if isinstance(preset, str) and preset in PRESETS else given

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        """Combinations that have no meaning are refused rather than half ignored."""
        if self.drift.noise == "swap" and self.drift.compare == "average":
            raise ValueError("drift.noise = swap compares two collections; it needs drift.compare = previous, or give drift.noise = none")
        if self.drift.noise == "swap" and self.fisher.formulas == "released":
            raise ValueError("drift.noise = swap needs fisher.formulas = exact, or give drift.noise = none")
        if self.drift.centre == "median" and self.drift.distance == "raw":
            raise ValueError("drift.centre = median centres logarithms; drift.distance = raw needs drift.centre = none")
        return self


class RunSpec(MethodSpec):
    """Everything that decides what a run computes, but its seed."""

    task: TaskSpec = CrackSegmentationSpec()
    train: TrainSpec = TrainSpec()

    @model_validator(mode="after")
    def _check_halves(self) -> Self:
        if self.drift.noise == "swap" and self.train.global_batch < 2:
            raise ValueError("drift.noise = swap halves each batch; it needs train.global_batch >= 2, not 1, or give drift.noise = none")
        return self


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping; anything that is not a mapping replaces what was there."""
    merged = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], Mapping) and isinstance(over[key], Mapping):
            merged[key] = merge(base[key], over[key])
    return merged


def without_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """A complete run as plain JSON types, less the fields that only its preset has set: what another preset may be applied to."""
    defaults = RunSpec.model_validate({"preset": values["preset"]}).model_dump(mode="json")
    governed = {section: _differences(defaults[section], values[section]) for section in ("fisher", "drift", "freeze")}
    return {**values, **governed}


def _differences(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found[key] = _differences(defaults.get(key) or {}, value)
        elif key not in defaults or value != defaults[key]:
            found[key] = value
    return found
