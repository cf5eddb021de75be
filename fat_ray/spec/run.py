"""One run: what is trained, how, what is measured, and when groups freeze. A trial of a study is one of these per seed."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fat_ray.spec.base import Count, Decay, Fraction, NonNegative, Positive, Strict
from fat_ray.spec.task import CrackSegmentationSpec, TaskSpec


class OptimizerSpec(Strict):
    """The optimizer, by its name in torch.optim."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Acts on active entries only."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW only."""
    momentum: Decay = 0.9
    """SGD only."""


class ScheduleSpec(Strict):
    """The learning rate over the steps: linear warm-up, then the named curve down to `final_fraction` of the peak."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_fraction: Fraction = 0.0


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
    """0: train on CPU."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """auto: nccl with GPUs, else gloo."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.global_batch % self.workers:
            raise ValueError(f"global_batch = {self.global_batch} must be divisible by workers = {self.workers}")
        if self.backend == "nccl" and not self.gpus_per_worker:
            raise ValueError("backend nccl needs gpus_per_worker > 0")
        return self


class FisherSpec(Strict):
    """How the diagonal Fisher information is estimated (METHOD of the documentation, section 1)."""

    every: Count = 4
    """Collection window m: statistics are collected every so many steps."""
    average: Literal["bias_corrected", "none"] = "bias_corrected"
    """Running average of the factors over collections; none: each collection stands alone."""
    decay: Decay = 0.8
    """γ of the running average."""
    blocks: Count = 4
    """Row blocks k that each weight of two or more dimensions is cut into, with the bias entries of the same rows."""
    min_block_rows: Count = 4
    """A tensor is cut into fewer blocks rather than into blocks of fewer rows than this."""


class DriftSpec(Strict):
    """How two Fisher states of a group are compared."""

    bins: Annotated[int, Field(ge=2, le=4096)] = 64
    centre: Literal["median", "none"] = "median"
    """median: subtract each state's median log10 before binning, which makes the distance independent of scale."""
    smoothing: Decay = 0.9
    """β of the exponential average of the distance (bias-corrected)."""
    score: Literal["mean", "last", "total_variation"] = "mean"
    """What the policy compares: mean of the smoothed distances since the start, the last one, or the sum of their changes."""


class FreezeSpec(Strict):
    """Who decides what freezes, and when."""

    policy: Literal["none", "fisher_drift", "random_matched"] = "fisher_drift"
    threshold: float = -0.5
    """λ: groups whose score lies below mean + λ·std over the active groups freeze. Zero or more freezes most groups at once."""
    every: Count = 12
    """Freeze window n: steps between decisions."""
    warmup_steps: Annotated[int, Field(ge=0)] = 12
    """No decision before this step."""
    floor: Fraction = 0.05
    """Smallest fraction of elements that stays active."""
    cap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest fraction of the active elements that one event may freeze."""
    follow: str | None = None
    """random_matched only: the run whose recorded schedule is followed; null: the best finished run of the same study."""


class RunSpec(Strict):
    """Everything that decides what a run computes, but its seed."""

    task: TaskSpec = CrackSegmentationSpec()
    train: TrainSpec = TrainSpec()
    fisher: FisherSpec = FisherSpec()
    drift: DriftSpec = DriftSpec()
    freeze: FreezeSpec = FreezeSpec()
