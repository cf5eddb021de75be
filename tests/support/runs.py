"""A small run with every kind of event, and its records."""

from datetime import UTC, datetime
from pathlib import Path

from fat_ray.events import Drift, Eval, Event, Freeze, GroupInfo, Layers, Notice, Resumption, RunEnd, RunStart, Status, Step
from fat_ray.records.parquet import ParquetSink
from fat_ray.spec.run import RunSpec
from fat_ray.spec.study import as_json

GROUPS = [
    GroupInfo("stem[0:8]", "stem", "Conv2d", 216),
    GroupInfo("stem[8:16]", "stem", "Conv2d", 216),
    GroupInfo("norm", "norm", "BatchNorm2d", 32),
    GroupInfo("head", "head", "Linear", 17),
]


def start(run: str = "t0003-s0", *, groups: list[GroupInfo] = GROUPS) -> RunStart:
    return RunStart(
        run=run,
        study="quick",
        trial=3,
        seed=0,
        role="search",
        label="",
        params={"freeze.threshold": -0.25, "freeze.every": 8, "drift.score": "mean", "train.clip_norm": None},
        spec=as_json(RunSpec()),
        environment={"git_commit": None, "versions": {"torch": "2.13.0"}, "world_size": 2},
        groups=groups,
        started_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        follow=[(4, 449), (8, 17)],
    )


def resumption(step: int = 2, note: str = "") -> Resumption:
    return Resumption(step, environment={"world_size": 2}, note=note, resumed_at=datetime(2026, 1, 2, 4, 4, 5, 678901, tzinfo=UTC))


def step(number: int, loss: float = 0.5) -> Step:
    return Step(
        number,
        loss,
        lr=1e-3,
        grad_norm=0.25,
        active_elements=481 - 32 * (number > 2),
        samples=8,
        flops_forward=4e8,
        flops_input_gradient=3.5e8,
        flops_weight_gradient=2.5e8,
        comm_bytes=2000 - 128 * (number > 2),
        optimizer_bytes=4000 - 256 * (number > 2),
        peak_memory_bytes=50_000_000 - number,
        step_s=0.125,
    )


def body() -> list[Event]:
    """What lies between start and end: steps 0 to 4, two evaluations, two drift updates, two decisions."""
    return [
        Eval(0, "val", {"f1": 0.125, "loss": 0.75}, eval_s=0.5),
        step(0),
        Layers(["stem", "norm", None, "head"], [3e8, 0.0, 0.5e8, 0.5e8]),
        Drift(0, 0, [None] * 4, [None] * 4, [None] * 4, [None] * 4, [True] * 4),
        step(1, loss=0.4),
        Freeze(1, 0, [], 0, 481, 4, threshold=0.05, limited_by="floor", decide_s=0.001),
        step(2, loss=0.3),
        Drift(
            2,
            1,
            [0.1, 0.3, None, 0.5],
            [0.0, 0.01, None, 0.0],
            [0.01, 0.03, None, 0.05],
            [0.01, 0.03, None, 0.05],
            [True, True, False, True],
        ),
        Freeze(2, 1, [2], 32, 449, 3, threshold=None, limited_by="", decide_s=0.002, frontier="norm"),
        Notice(2, "prefix", "outputs of stem are remembered; norm is active"),
        step(3, loss=0.2),
        step(4, loss=float("nan")),
        Eval(5, "val", {"f1": 0.5, "loss": float("nan")}, eval_s=0.5),
        Eval(5, "zero-shot blur", {"f1": 0.375}, eval_s=0.25),
    ]


def end(status: Status = Status.COMPLETED, reason: str = "", final: dict[str, float] | None = None) -> RunEnd:
    return RunEnd(
        status=status,
        reason=reason,
        steps=5,
        wall_s=9.5,
        train_s=0.625,
        worker_s=19.0,
        updates=2341,
        flops=5e9,
        mean_active=468.2,
        mean_active_fraction=0.975,
        final=final if final is not None else {"val/f1": 0.5, "zero-shot blur/f1": 0.375},
        best={"val/f1": 0.5},
        comm_bytes=9744,
        optimizer_bytes=4000,
        peak_memory_bytes=50_000_000,
    )


def write_run(directory: Path, run: str = "t0003-s0", *, ended: RunEnd | None = None) -> None:
    """Writes a whole run with two flushes; the second ends it."""
    sink = ParquetSink(directory, run)
    events = body()
    for event in [start(run), *events[:7]]:
        sink.emit(event)
    sink.flush()
    for event in [*events[7:], ended if ended is not None else end()]:
        sink.emit(event)
    sink.close()
