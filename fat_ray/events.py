"""What a run emits, in order: RunStart, then Step, Eval, Drift, Freeze and Notice as they happen, then RunEnd; Resumption when it goes on.

Layers comes once, after the first step.

Events are plain frozen dataclasses without arrays or tensors, so that every sink can use them without torch. A sequence
field that says "per group" is aligned with `RunStart.groups`; a group's position in that list is its id everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"  # all steps were trained
    PRUNED = "pruned"  # stopped early by the study's scheduler; its last values are partial
    STOPPED = "stopped"  # stopped on request (Ctrl-C, time budget)
    DIVERGED = "diverged"  # the loss became NaN or infinite
    FAILED = "failed"  # anything else


@dataclass(frozen=True)
class GroupInfo:
    """A set of parameter entries that freeze together.

    Attributes:
        name: Unique within the run, such as ``encoder._blocks.0._project_conv[0:8]``.
        layer: Dotted module path that owns the entries.
        kind: Class name of that module, such as ``Conv2d``.
        elements: Number of parameter entries.
    """

    name: str
    layer: str
    kind: str
    elements: int


@dataclass(frozen=True)
class RunStart:
    """The first event of a run: everything that is needed to repeat it.

    Attributes:
        run: Id of the run, unique in its study, such as ``t0003-s0`` or ``none-s0``.
        study: Name of the study.
        trial: Number of the trial in the search; None for a baseline.
        seed: Seed of this run.
        role: ``search``, ``baseline`` or ``single``.
        label: Name of the baseline, else empty.
        params: Searched fields and their values (dotted key to value).
        spec: The whole resolved run specification as plain JSON types.
        environment: Git commit, versions, world size, device, host (see records/environment.py).
        groups: All groups in network order.
        started_at: UTC.
        follow: The schedule that the run is told to follow, as (step, active elements after the event); None: none.
    """

    run: str
    study: str
    trial: int | None
    seed: int
    role: str
    label: str
    params: Mapping[str, Any]
    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    groups: Sequence[GroupInfo]
    started_at: datetime
    follow: Sequence[tuple[int, int]] | None = None

    @property
    def total_elements(self) -> int:
        """Number of parameter entries in all groups, active or not."""
        return sum(group.elements for group in self.groups)


@dataclass(frozen=True)
class Resumption:
    """A run that was interrupted goes on. What it did after `step` is taken back from the records: it does it again.

    Attributes:
        step: Optimizer steps that were done in the checkpoint it goes on from; 0 when it begins anew.
        environment: As in `RunStart`, now.
        note: What can no longer be equal to the uninterrupted run, and why; empty when all is, to the bit.
        resumed_at: UTC.
    """

    step: int
    environment: Mapping[str, Any]
    note: str
    resumed_at: datetime


@dataclass(frozen=True)
class Step:
    """One optimizer step, counted from 0. Values are means over the global batch.

    Attributes:
        active_elements: Entries that this step's update could move.
        grad_norm: L2 norm of the gradient over active entries before clipping.
        flops_forward: Analytic floating point operations of the forward over the global batch, two per multiply-add.
        flops_input_gradient: Those of the backward that lead to earlier layers; of products without a weight, as in attention, all.
        flops_weight_gradient: Those of the backward that lead to weights.
        comm_bytes: Bytes that each rank gave to collectives: gradients, buffers, statistics, agreements; 0 with one rank.
        optimizer_bytes: Bytes of the optimizer's state on each rank after the update.
        peak_memory_bytes: The most memory in use during the step on rank 0: on CUDA what was allocated on the device, on the CPU the
            resident set of the process.
        step_s: Wall-clock seconds of the step on rank 0, statistics and freezing included, evaluation not.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    active_elements: int
    samples: int
    flops_forward: float
    flops_input_gradient: float
    flops_weight_gradient: float
    comm_bytes: int
    optimizer_bytes: int
    peak_memory_bytes: int
    step_s: float

    @property
    def flops(self) -> float:
        """Analytic floating point operations of forward and backward over the global batch."""
        return self.flops_forward + self.flops_input_gradient + self.flops_weight_gradient


@dataclass(frozen=True)
class Layers:
    """What the forward of each layer costs, from which the costs of schedules can be estimated that were never trained.

    Attributes:
        layers: Paths of the modules that own weights, in the order in which a step first uses one of these; None for products without
            a weight, as in attention, between them.
        flops_forward: Per entry, operations of the forward over the global batch in the first step; 0 for layers without products.
    """

    layers: Sequence[str | None]
    flops_forward: Sequence[float]


@dataclass(frozen=True)
class Eval:
    """Metrics of one whole evaluation set after `step` optimizer steps, at least one.

    Attributes:
        split: ``val``, ``test`` or the name of a zero-shot set.
        metrics: Metric name to value, such as ``{"f1": 0.61, "iou": 0.44, "loss": 0.3, "constant_f1": 0.03}``.
        eval_s: Wall-clock seconds of this evaluation on rank 0.
    """

    step: int
    split: str
    metrics: Mapping[str, float]
    eval_s: float


@dataclass(frozen=True)
class Drift:
    """One drift update: the Fisher distributions of this window against the previous ones, per group.

    Attributes:
        step: Step at which the statistics were collected.
        update: Number of this update in the run, from 0.
        distance: Per group, the distance between the two states, or with noise correction the divergence above what noise explains,
            which may be negative; None where not measured (frozen, or the first update).
        noise: Per group, the divergence of sampling noise alone that was subtracted; 0 without correction.
        smoothed: Per group, the exponentially smoothed distance.
        score: Per group, what the policy compares with its threshold.
        active: Per group, whether any entry was active during the update.
    """

    step: int
    update: int
    distance: Sequence[float | None]
    noise: Sequence[float | None]
    smoothed: Sequence[float | None]
    score: Sequence[float | None]
    active: Sequence[bool]


@dataclass(frozen=True)
class Freeze:
    """A decision of the policy, also when it froze nothing.

    Attributes:
        event: Number of this event in the run, from 0.
        frozen: Ids of the groups frozen by this event.
        frozen_elements: Their entries.
        active_elements: Entries active after the event.
        active_groups: Groups active after the event.
        threshold: The score below which groups froze; None for policies without one.
        limited_by: ``floor`` or ``cap`` when a limit kept groups active that were below the threshold, else empty.
        decide_s: Seconds from scores to frozen groups on rank 0.
        frontier: Path of the first layer in network order with an active entry: those before it run without autograd. None while nothing
            is frozen.
    """

    step: int
    event: int
    frozen: Sequence[int]
    frozen_elements: int
    active_elements: int
    active_groups: int
    threshold: float | None
    limited_by: str
    decide_s: float
    frontier: str | None = None


@dataclass(frozen=True)
class Notice:
    """Something about a run that its reader should know, in words.

    Attributes:
        step: Optimizer steps done.
        topic: What it is about: ``prefix``, the memory of what the frozen prefix returns.
        text: A sentence.
    """

    step: int
    topic: str
    text: str


@dataclass(frozen=True)
class RunEnd:
    """The last event of a run: how it ended and what it cost.

    Attributes:
        reason: Why it ended early; empty when completed.
        steps: Optimizer steps done.
        wall_s: Seconds from the start of the worker's loop to its end on rank 0, set-up and evaluation included.
        train_s: Sum of `Step.step_s`.
        worker_s: `wall_s` times the number of workers.
        updates: Parameter updates: the sum over steps of active entries.
        flops: Sum of `Step.flops`.
        mean_active: The paper's N̄: mean over steps of the number of active entries.
        mean_active_fraction: `mean_active` over the entries of all groups.
        final: Last value of every metric, keyed ``split/metric``.
        best: Best value of every metric of ``val`` seen during the run with the step it was seen at, keyed ``val/metric``.
        comm_bytes: Sum of `Step.comm_bytes`; None where records of an older version do not say.
        optimizer_bytes: Largest `Step.optimizer_bytes`, likewise.
        peak_memory_bytes: Largest `Step.peak_memory_bytes`, likewise.
    """

    status: Status
    reason: str
    steps: int
    wall_s: float
    train_s: float
    worker_s: float
    updates: int
    flops: float
    mean_active: float
    mean_active_fraction: float
    final: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    comm_bytes: int | None = None
    optimizer_bytes: int | None = None
    peak_memory_bytes: int | None = None


Event = RunStart | Resumption | Layers | Step | Eval | Drift | Freeze | Notice | RunEnd
