"""Times and memory of Fisher statistics and drift: `python -m bench.drift [--json]`. bench/README.md says what is printed."""

import argparse
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from bench.networks import BATCH, CASES, Case
from bench.plain import PlainMeter
from bench.tables import markdown
from fat_ray.engine.step import build_optimizer
from fat_ray.fisher.collector import Collector, Share, Sums
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, build_formulas
from fat_ray.fisher.reduce import reduce_sums
from fat_ray.spec.run import RunSpec

CPU = torch.device("cpu")
PRESETS = ("released", "paper", "corrected")
UPDATES = 3
"""Recorded collections; the first one only starts the states."""

Row = dict[str, Any]


class Bench:
    """A case under a preset: its model, its statistics, and the meter that compares them."""

    def __init__(self, case: Case, preset: str, meter: type[DriftMeter] = DriftMeter) -> None:
        self.case, self.spec = case, RunSpec.model_validate({"preset": preset})
        self.groups = build_groups(case.model, self.spec.fisher.groups)
        self.meter = meter(case.model, self.groups, self.spec.fisher, self.spec.drift)
        self.collector = Collector(case.model, self.groups, build_formulas(self.spec.fisher), halves=self.meter.halves)
        self.active = np.ones(len(self.groups), bool) & ~self.meter.dead
        self.layers = {group.layer for group, on in zip(self.groups, self.active, strict=True) if on}

    def train(self, optimizer: torch.optim.Optimizer, *, collect: bool) -> Sums:
        """One training step; with `collect`, its statistics."""
        if collect:
            self.collector.arm(self.layers, Share(BATCH))
        plain_step(self.case, optimizer, lambda: None)
        return self.collector.take() if collect else {}

    def update(self, sums: Sums, gradients: Callable[[str], Any]) -> Any:
        """The drift update."""
        return self.meter.update(sums, gradients, self.active, CPU)

    def gradient(self, name: str) -> Any:
        """The squared gradient of a parameter without factors."""
        gradient = self.case.model.get_parameter(name).grad
        assert gradient is not None
        return gradient.double().square().numpy()


def plain_step(case: Case, optimizer: torch.optim.Optimizer, before_update: Callable[[], None]) -> None:
    """What training costs without any statistics."""
    optimizer.zero_grad(set_to_none=True)
    case.loss(case.model, case.batch).backward()  # type: ignore[no-untyped-call]
    before_update()
    nn.utils.clip_grad_norm_(case.model.parameters(), 1.0)
    optimizer.step()


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds of this thread: what other processes do to the machine does not count."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


def measure_update(case: Case, preset: str, repeats: int) -> Row:
    """The drift update against the plain one, on the same recorded statistics, in turns; equal results are asserted."""
    bench = Bench(case, preset)
    optimizer = build_optimizer(bench.spec.train.optimizer, case.model)
    recorded = []
    for _ in range(UPDATES):
        sums = bench.train(optimizer, collect=True)
        recorded.append((sums, {name: bench.gradient(name) for name in bare(bench)}))
    seconds: dict[str, list[float]] = {"fast": [], "plain": []}
    difference = 0.0
    for _ in range(repeats):
        meters = {"fast": Bench(case, preset), "plain": Bench(case, preset, PlainMeter)}
        for number, (sums, gradients) in enumerate(recorded):
            found = {}
            for name, one in meters.items():
                started = time.thread_time()
                found[name] = one.update(sums, gradients.__getitem__)
                if number:
                    seconds[name].append(time.thread_time() - started)
            assert (found["fast"].measured == found["plain"].measured).all()
            for field in ("distance", "noise"):
                difference = max(difference, float(np.abs(getattr(found["fast"], field) - getattr(found["plain"], field)).max()))
    assert difference <= 1e-12, f"{case.name}, {preset}: the fast distance is off by {difference}"
    fast, plain = statistics.median(seconds["fast"]), statistics.median(seconds["plain"])
    memory = peak_memory(case, preset, recorded) / case.parameters
    return {"groups": len(bench.groups), "update_s": fast, "plain_update_s": plain, "ratio": fast / plain, "bytes_per_parameter": memory}


def bare(bench: Bench) -> list[str]:
    """Parameters whose squared gradients stand in for factors."""
    factored = zip(bench.groups, bench.meter.factored, bench.active, strict=True)
    return list(dict.fromkeys(member.parameter for group, known, on in factored if on and not known for member in group.members))


def peak_memory(case: Case, preset: str, recorded: list[tuple[Sums, dict[str, Any]]]) -> float:
    """Largest number of bytes that states and scratch took at once (tracemalloc: all of NumPy and Python, nothing of torch)."""
    tracemalloc.start()
    bench = Bench(case, preset)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    for sums, gradients in recorded:
        bench.update(sums, gradients.__getitem__)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return float(peak - before)


def measure_steps(case: Case, presets: Sequence[str], repeats: int) -> dict[str, Row]:
    """Whole steps in turns: plain, then idle and collecting (with drift update) of each preset."""
    benches = {preset: Bench(case, preset) for preset in presets}
    optimizer = build_optimizer(benches[presets[0]].spec.train.optimizer, case.model)
    plain: list[float] = []
    idle: list[float] = []
    collecting: dict[str, list[float]] = {preset: [] for preset in presets}

    def collect(bench: Bench) -> None:
        bench.collector.arm(bench.layers, Share(BATCH))
        plain_step(case, optimizer, lambda: bench.update(bench.collector.take(), bench.gradient))

    for _ in range(repeats + 1):
        for preset, bench in benches.items():
            plain.append(timed(lambda: plain_step(case, optimizer, lambda: None)))
            idle.append(timed(lambda: bench.train(optimizer, collect=False)))  # noqa: B023  called at once
            collecting[preset].append(timed(lambda: collect(bench)))  # noqa: B023
    first = len(presets)
    base = statistics.median(plain[first:])
    idle_ratio = statistics.median(one / other for one, other in zip(idle[first:], plain[first:], strict=True))
    ratios = {preset: statistics.median(seconds[1:]) / base for preset, seconds in collecting.items()}
    return {
        preset: {"plain_step_s": base, "idle_over_plain": idle_ratio, "collecting_over_plain": ratio} for preset, ratio in ratios.items()
    }


def measure_reduction(repeats: int) -> Row:
    """The factors of the larger transformer on 2 gloo ranks: one flat bucket against a collective per module or per factor."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_reduce_on_rank, (folder, repeats), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
        return dict(json.loads(Path(folder, "0.json").read_text()))


def _reduce_on_rank(rank: int, folder: str, repeats: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    layers, sizes = [f"layer {number}" for number in range(75)], {"row": 384, "column": 4 * 384}
    sums: Sums = {(layer, part, 1): (torch.rand(size), 1.0) for layer in layers for part, size in sizes.items()}
    single = {layer: {key: value for key, value in sums.items() if key[0] == layer} for layer in layers}
    ways: dict[str, Callable[[], Any]] = {
        "flat_s": lambda: reduce_sums(sums, CPU),
        "per_module_s": lambda: [reduce_sums(own, CPU) for own in single.values()],
        "per_tensor_s": lambda: [dist.all_reduce(value) for value, _ in sums.values()],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, work in ways.items():
            dist.barrier()
            started = time.perf_counter()
            work()
            seconds[way].append(time.perf_counter() - started)
    if rank == 0:
        found = {way: statistics.median(values) for way, values in seconds.items()}
        Path(folder, "0.json").write_text(json.dumps({"modules": len(layers), **found}))
    dist.destroy_process_group()


def run(cases: Sequence[str], presets: Sequence[str], repeats: int) -> Row:
    """All tables."""
    torch.set_num_threads(1)
    drift = []
    for name in cases:
        case = CASES[name](name)
        updates = {preset: measure_update(case, preset, max(1, repeats // 2)) for preset in presets}
        steps = measure_steps(case, presets, repeats)
        whole = {"network": name, "parameters": case.parameters}
        drift += [{**whole, "preset": preset, **updates[preset], **steps[preset]} for preset in presets]
    return {"torch": torch.__version__, "numpy": np.__version__, "drift": drift, "all_reduce": measure_reduction(20 * repeats)}


def table(found: Row) -> str:
    """The tables as text."""
    columns = ["network", "preset", "groups", "update_s", "plain_update_s", "ratio", "bytes_per_parameter"]
    columns += ["plain_step_s", "idle_over_plain", "collecting_over_plain"]
    lines = [markdown(found["drift"], columns)]
    reduction = found["all_reduce"]
    flat, module, tensor = (reduction[way] for way in ("flat_s", "per_module_s", "per_tensor_s"))
    lines.append(
        f"\nall-reduce, {reduction['modules']} modules, 2 gloo ranks: {flat * 1e3:.2f} ms in one bucket; "
        f"{module * 1e3:.2f} ms with one per module ({module / flat:.0f} times), "
        f"{tensor * 1e3:.2f} ms with one per tensor ({tensor / flat:.0f} times)"
    )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats of which medians are taken")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    given = parser.parse_args()
    found = run(given.cases, given.presets, given.repeats)
    print(json.dumps(found, indent=2) if given.json else table(found))


if __name__ == "__main__":
    main()
