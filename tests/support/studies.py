"""Synthetic studies, written through the real specification, manifest, events and Parquet sink."""

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from fat_ray.events import Drift, Eval, Event, Freeze, GroupInfo, RunEnd, RunStart, Status, Step
from fat_ray.records.manifest import Manifest
from fat_ray.records.parquet import ParquetSink
from fat_ray.spec.study import StudySpec, as_json

pa.array([0])  # makes pyarrow look for pandas now, not within the time limit of the first test
STARTED = datetime(2026, 3, 14, 9, 26, tzinfo=UTC)


@dataclass
class FakeRun:
    """What a synthetic run shall look like; the curves between are made up from it.

    `status=None` leaves the run without an end. `frozen` is the fraction of groups frozen at the end.
    """

    run: str
    role: str = "search"
    label: str = ""
    trial: int | None = None
    seed: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    status: Status | None = Status.COMPLETED
    reason: str = ""
    steps: int | None = None
    f1: float = 0.6
    test_f1: float | None = None
    frozen: float = 0.5
    step_s: float = 0.5


def small_groups(count: int = 6, name: str = "net.{}") -> list[GroupInfo]:
    """Groups of 100 entries, alternately of a convolution and a norm."""
    kinds = ("Conv2d", "BatchNorm2d")
    return [GroupInfo(name=f"{name.format(i)}[0:4]", layer=name.format(i), kind=kinds[i % 2], elements=100) for i in range(count)]


def lite0_groups() -> list[GroupInfo]:
    """About 250 groups named and sized like those of EfficientNet-Lite0 with an all-MLP head."""
    stages = ((1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (3, 3, 6, 80), (3, 5, 6, 112), (4, 5, 6, 192), (1, 3, 6, 320))
    groups, width, block = [*_conv("encoder._conv_stem", 32, 27), _norm("encoder._bn0", 32)], 32, 0
    for repeats, kernel, expansion, channels in stages:
        for _ in range(repeats):
            path, inner = f"encoder._blocks.{block}", width * expansion
            if expansion > 1:
                groups += [*_conv(f"{path}._expand_conv", inner, width), _norm(f"{path}._bn0", inner)]
            groups += [*_conv(f"{path}._depthwise_conv", inner, kernel * kernel), _norm(f"{path}._bn1", inner)]
            groups += [*_conv(f"{path}._project_conv", channels, inner), _norm(f"{path}._bn2", channels)]
            width, block = channels, block + 1
    for level, channels in enumerate((16, 24, 40, 112, 320)):
        groups += _linear(f"head.project.{level}", 48, channels)
    return [*groups, *_conv("head.fuse", 48, 240), _norm("head.norm", 48), *_conv("head.classify", 1, 48)]


def _blocks(layer: str, kind: str, rows_: int, columns: int) -> list[GroupInfo]:
    edges = sorted({rows_ * i // 4 for i in range(5)}) if rows_ >= 16 else [0, rows_]
    return [GroupInfo(f"{layer}[{a}:{b}]", layer, kind, (b - a) * columns) for a, b in pairwise(edges)]


def _conv(layer: str, out: int, fan_in: int) -> list[GroupInfo]:
    return _blocks(layer, "Conv2d", out, fan_in)


def _linear(layer: str, out: int, fan_in: int) -> list[GroupInfo]:
    return _blocks(layer, "Linear", out, fan_in + 1)


def _norm(layer: str, width: int) -> GroupInfo:
    return GroupInfo(layer, layer, "BatchNorm2d", 2 * width)


def study_spec(name: str = "crack-quick", steps: int = 100, **changes: Any) -> StudySpec:
    """A study that searches λ, m and n."""
    document = {
        "name": name,
        "train": {"steps": steps, "evaluate_every": max(steps // 4, 1), "workers": 2},
        "search": {
            "freeze.threshold": {"type": "float", "low": -1.2, "high": -0.1},
            "fisher.every": {"type": "categorical", "choices": [2, 4, 8]},
            "freeze.every": {"type": "int", "low": 8, "high": 24, "step": 4},
        },
        "budget": {"trials": 6},
        **changes,
    }
    return StudySpec.model_validate_json(json.dumps(document))


def write_study(
    directory: Path,
    runs: Sequence[FakeRun],
    *,
    spec: StudySpec | None = None,
    groups: Sequence[GroupInfo] | None = None,
    constant_f1: float | None = 0.03,
    text: str = "",
) -> Path:
    """Writes a study directory with the records of these runs, one part file per table and run."""
    spec = spec or study_spec()
    directory.mkdir(parents=True)
    manifest = Manifest(
        name=spec.name,
        launch="0badcafe",
        created_at=STARTED,
        fat_ray="0.1.0",
        git_commit="2a374ea",
        git_dirty=False,
        command=[],
        spec=as_json(spec),
    )
    (directory / "study.json").write_text(manifest.model_dump_json())
    if text:
        (directory / "study.yaml").write_text(text)
    for number, run in enumerate(runs):
        start = start_of(run, spec, groups or small_groups(), STARTED + timedelta(minutes=number))
        write_events(directory, start, _events(run, start, spec, constant_f1))
    return directory


def write_events(directory: Path, start: RunStart, events: Iterable[Event]) -> None:
    """Appends a start of a run and its events to the records."""
    sink = ParquetSink(directory, start.run)
    for event in (start, *events):
        sink.emit(event)
    sink.close()


def start_of(run: FakeRun, spec: StudySpec, groups: Sequence[GroupInfo], at: datetime = STARTED) -> RunStart:
    """The first event of a run."""
    document = as_json(spec.run)
    for key, value in run.params.items():
        part, _, name = key.partition(".")
        document[part][name] = value
    if run.role == "baseline":
        document["freeze"]["policy"] = run.label
    return RunStart(
        run=run.run,
        study=spec.name,
        trial=run.trial,
        seed=run.seed,
        role=run.role,
        label=run.label,
        params=run.params,
        spec=document,
        environment={
            "python": "3.11.9",
            "torch": "2.13.0+cpu",
            "world_size": 2,
            "device": "cpu",
            "git": {"commit": "2a374ea", "dirty": False},
        },
        groups=groups,
        started_at=at,
    )


def _events(run: FakeRun, start: RunStart, spec: StudySpec, constant_f1: float | None) -> Iterator[Event]:
    rng = random.Random(run.run)
    train, freeze, every = spec.train, spec.freeze, int(run.params.get("freeze.every", spec.freeze.every))
    planned, done = train.steps, run.steps or train.steps
    depth = {group: rng.random() * 0.5 + 0.5 * group / len(start.groups) for group in range(len(start.groups))}
    order = sorted(depth, key=depth.__getitem__)
    frozen: set[int] = set()
    active, total, updates, flops, sent, event, update = start.total_elements, start.total_elements, 0, 0.0, 0, 0, 0
    yield _eval(run, 0, planned, "val", constant_f1)
    for step in range(done):
        if run.frozen and step and step % int(run.params.get("fisher.every", spec.fisher.every)) == 0:
            yield _drift(step, update, frozen, start, rng)
            update += 1
        if run.frozen and step >= freeze.warmup_steps and step % every == 0:
            share = run.frozen * min(1.0, step / (0.8 * planned)) ** 0.7
            newly = sorted(set(order[: int(share * len(order))]) - frozen)
            frozen |= set(newly)
            gone = sum(start.groups[g].elements for g in newly)
            active -= gone
            yield Freeze(step, event, newly, gone, active, len(order) - len(frozen), 0.2, "cap" if event == 0 else "", 0.001)
            event += 1
        done_step = _step(run, step, planned, active, total)
        updates, flops, sent = updates + active, flops + done_step.flops, sent + done_step.comm_bytes
        yield done_step
        if (step + 1) % train.evaluate_every == 0:
            yield _eval(run, step + 1, planned, "val", constant_f1)
    if run.status is None:
        return
    if run.status is Status.COMPLETED:
        yield _eval(run, done, planned, "test", constant_f1)
        yield _eval(run, done, planned, "zero_shot", constant_f1)
    mean = updates / done
    train_s = run.step_s * done * (0.5 + 0.5 * mean / total)
    costs = {"comm_bytes": sent, "optimizer_bytes": 8 * total, "peak_memory_bytes": 10**8 + 16 * total}
    yield RunEnd(run.status, run.reason, done, train_s * 1.2, train_s, train_s * 2.4, updates, flops, mean, mean / total, **costs)


def _step(run: FakeRun, step: int, planned: int, active: int, total: int) -> Step:
    """Forward and half of the memory cost what they cost; the rest is in proportion to what is active."""
    share = active / total
    return Step(
        step=step,
        loss=0.9 * math.exp(-3 * step / planned) + 0.1,
        lr=1e-3,
        grad_norm=1.0,
        active_elements=active,
        samples=8,
        flops_forward=1e9,
        flops_input_gradient=1e9 * share,
        flops_weight_gradient=1e9 * share,
        comm_bytes=4 * active,
        optimizer_bytes=8 * active,
        peak_memory_bytes=10**8 + 16 * active,
        step_s=run.step_s * (0.5 + 0.5 * share),
    )


def _eval(run: FakeRun, step: int, planned: int, split: str, constant_f1: float | None) -> Eval:
    target = {"val": run.f1, "test": run.test_f1 or run.f1 - 0.02, "zero_shot": run.f1 - 0.1}[split]
    dip = 0.03 * run.f1 * math.sin(9 * step / planned + hash_of(run.run)) * (1 - step / planned)
    value = target * (1 - math.exp(-5 * step / planned)) / (1 - math.exp(-5)) + dip
    value = min(max(value, 0.002), 1.0)
    metrics = {"f1": value, "iou": value / (2 - value), "loss": 1 - value}
    if constant_f1 is not None:
        metrics["constant_f1"] = constant_f1
    return Eval(step, split, metrics, 0.4)


def hash_of(text: str) -> float:
    """A number in [0, 6) that depends on the text alone."""
    return sum(map(ord, text)) % 60 / 10


def _drift(step: int, update: int, frozen: set[int], start: RunStart, rng: random.Random) -> Drift:
    level = {"Conv2d": 0.30, "BatchNorm2d": 0.42, "Linear": 0.36}
    base = [level.get(g.kind, 0.3) * math.exp(-step / 90) + 0.05 + 0.03 * rng.random() for g in start.groups]
    known = [None if g in frozen or update == 0 else base[g] for g in range(len(base))]
    return Drift(step, update, known, known, known, known, [g not in frozen for g in range(len(base))])
