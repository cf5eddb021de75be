"""What freezing saves, beside plain full fine-tuning in one run: `python -m bench.freeze [--json]`. See bench/README.md."""

import argparse
import copy
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from bench.networks import BATCH, Case, crack_cnn, vision_transformer
from bench.tables import markdown
from fat_ray import rules
from fat_ray.engine.flops import FlopMeter
from fat_ray.engine.step import build_optimizer, wrap
from fat_ray.fisher.groups import Block, Group, build_groups
from fat_ray.fisher.reduce import world
from fat_ray.freeze.freezer import Freezer
from fat_ray.freeze.policy import Decision, Observation, Policy
from fat_ray.spec.run import GroupSpec, OptimizerSpec

CASES: dict[str, Callable[[], Case]] = {
    "vit-384x6": lambda: vision_transformer("vit-384x6", 384, depth=6),
    "lite0-seg": lambda: crack_cnn("lite0-seg"),
}
FROZEN = (0.5, 0.78, 0.9)
PREFIX = 0.88
WARM_UP = 2
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How much of a network is frozen, and by which means.

    Attributes:
        means: ``plain``: nothing; ``sliced``: as `fat_ray` does it; ``remembered``: the same, with statistics of frozen norms held and
            outputs of the frozen prefix remembered; ``masked``: everything is computed and communicated, then masked.
        where: ``random`` groups, or the first ones in network order (``prefix``).
        frozen: Fraction of the elements.
    """

    means: str
    where: str = ""
    frozen: float = 0.0

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.means} {self.where} {100 * self.frozen:.0f} %" if self.where else self.means


SETTINGS = (
    Setting("plain"),
    *(Setting("sliced", "random", frozen) for frozen in FROZEN),
    Setting("sliced", "prefix", PREFIX),
    Setting("remembered", "prefix", PREFIX),
    *(Setting("masked", "random", frozen) for frozen in FROZEN),
    Setting("masked", "prefix", PREFIX),
)


def chosen_groups(groups: Sequence[Group], setting: Setting) -> rules.Bools:
    """Which groups are active."""
    elements = np.array([group.elements for group in groups])
    if setting.where == "prefix":
        return elements.cumsum() > setting.frozen * elements.sum()
    everything = np.ones(len(groups), bool)
    target = int((1 - setting.frozen) * elements.sum())
    return ~rules.select_random(everything, elements, target, np.random.default_rng(0)) if setting.where else everything


class Once(Policy):
    """Freezes given groups at one step."""

    def __init__(self, step: int, frozen: rules.Bools) -> None:
        self._step, self._frozen = step, frozen

    def is_due(self, step: int) -> bool:
        """At that step."""
        return step == self._step

    def decide(self, observation: Observation) -> Decision:
        """These groups."""
        return Decision(self._frozen & observation.active)


EVENT = 1
"""The step of the event: the optimizer has its state by then."""


class Trained:
    """A copy of a network that trains under a setting, after its freeze event."""

    def __init__(self, case: Case, setting: Setting) -> None:
        self.case, self.setting = case, setting
        self.model = copy.deepcopy(case.model)
        self.optimizer = build_optimizer(OptimizerSpec(), self.model)
        groups = build_groups(self.model, GroupSpec())
        active = chosen_groups(groups, setting)
        self.elements = sum(group.elements for group, on in zip(groups, active, strict=True) if on)
        policy = Once(EVENT, ~active) if setting.means in ("sliced", "remembered") else None
        memory = {"frozen_statistics": "hold", "cache_prefix_bytes": 2**30} if setting.means == "remembered" else {}
        self.freezer = Freezer(self.model, self.optimizer, {"freeze": {"policy": "none", **memory}}, policy=policy)
        self._masks: list[tuple[nn.Parameter, Block]] = []
        if setting.means == "masked":
            frozen = [group for group, on in zip(groups, active, strict=True) if not on]
            self._masks = [(self.model.get_parameter(member.parameter), member) for group in frozen for member in group.members]
        self.wrapped: nn.Module = wrap(self.model)
        self.event_s = 0.0
        for _ in range(EVENT + 1):
            self.step()

    def step(self) -> None:
        """One training step; the one that freezes is timed apart."""
        self.optimizer.zero_grad(set_to_none=True)
        self.freezer.arm(BATCH)
        self.case.loss(self.wrapped, self.case.batch).backward()  # type: ignore[no-untyped-call]
        started = time.perf_counter()
        if self.freezer.after_backward():
            self.wrapped = self.model  # the old wrapper goes first
            self.wrapped = wrap(self.model, init_sync=False)
            self.event_s = time.perf_counter() - started
        kept = self._mask()
        nn.utils.clip_grad_norm_((p for p in self.model.parameters() if p.grad is not None), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, block, values in kept:
                parameter[block.index] = values

    def _mask(self) -> list[tuple[nn.Parameter, Block, Tensor]]:
        """Clears what is frozen of the gradients; returns what has to be put back after the update."""
        with torch.no_grad():
            for parameter, block in self._masks:
                assert parameter.grad is not None
                parameter.grad[block.index] = 0
            return [(parameter, block, parameter[block.index].clone()) for parameter, block in self._masks]

    @property
    def optimizer_bytes(self) -> int:
        """Memory of the optimizer's state."""
        tensors = (value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def communicated_bytes(self) -> int:
        """Bytes of DDP's buckets in one step, as its communication hook sees them; with one rank, what would be sent."""
        if world()[1] == 1:
            return sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        sent = 0

        def count(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            nonlocal sent
            sent += bucket.buffer().nbytes
            return allreduce_hook(state, bucket)  # type: ignore[arg-type]

        self.wrapped = self.model  # one reducer at a time
        watched = nn.parallel.DistributedDataParallel(self.model, init_sync=False)
        watched.register_comm_hook(None, count)
        self.case.loss(watched, self.case.batch).backward()  # type: ignore[no-untyped-call]
        return sent

    def flops(self) -> float:
        """Analytic operations of one step, as it is after the first: that one computes everything."""
        meter = FlopMeter(self.model, self.freezer.memory)
        for _ in range(2):
            self.freezer.arm(BATCH)
            with meter.watch(self.case.batch):
                self.case.loss(self.model, self.case.batch).backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad(set_to_none=True)
        return meter.step.forward + meter.step.input_gradient + meter.step.weight_gradient


def measure(case: Case, repeats: int) -> list[Row]:
    """Steps of all settings in turns. One rank: CPU seconds of the thread; several: seconds of the slowest rank's clock."""
    several = world()[1] > 1
    trained = [Trained(case, setting) for setting in SETTINGS]
    seconds: list[list[float]] = [[] for _ in trained]
    for turn in range(WARM_UP + repeats):
        for one, times in zip(trained, seconds, strict=True):
            if several:
                dist.barrier()
            clock = time.perf_counter if several else time.thread_time
            started = clock()
            one.step()
            if several:
                dist.barrier()
            if turn >= WARM_UP:
                times.append(clock() - started)
    sent = [one.communicated_bytes() for one in trained]
    flops = [one.flops() if one.setting.means != "masked" else None for one in trained]
    plain = trained[0]
    rows = []
    for one, times, count, own in zip(trained, seconds, flops, sent, strict=True):
        ratios = [mine / base for mine, base in zip(times, seconds[0], strict=True)]
        rows.append(
            {
                "network": case.name,
                "ranks": world()[1],
                "setting": one.setting.name,
                "active": one.elements / plain.elements,
                "step_s": statistics.median(times),
                "step": statistics.median(ratios),
                "flop_limit": None if count is None else count / flops[0],  # type: ignore[operator]
                "communicated": own / sent[0],
                "optimizer": one.optimizer_bytes / plain.optimizer_bytes,
                "event": one.event_s / statistics.median(seconds[0]),
            }
        )
    return rows


def _on_rank(rank: int, folder: str, name: str, repeats: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = measure(CASES[name](), repeats)
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def on_two_ranks(name: str, repeats: int) -> list[Row]:
    """`measure` in two processes that talk over loopback."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_on_rank, (folder, name, repeats), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
        return list(json.loads(Path(folder, "rows.json").read_text()))


def _peak(_: int, folder: str, name: str, number: int) -> None:
    torch.set_num_threads(1)
    case = CASES[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = Trained(case, SETTINGS[number])
    at_event = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark: full fine-tuning came before the event
    for _step in range(3):
        one.step()
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0])
    Path(folder, "peak.json").write_text(json.dumps({"before_kib": before, "event_kib": at_event, "peak_kib": peak}))


def peak_memory(name: str) -> list[float]:
    """Peak resident memory of training after the event, a process per setting, in MiB. Linux only."""
    found = []
    for number in range(len(SETTINGS)):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_peak, (folder, name, number), nprocs=1)  # type: ignore[attr-defined,no-untyped-call]
            found.append(json.loads(Path(folder, "peak.json").read_text())["peak_kib"] / 1024)
    return found


def run(cases: Sequence[str], repeats: int) -> list[Row]:
    """All rows."""
    torch.set_num_threads(1)
    rows = []
    for name in cases:
        memory = peak_memory(name)
        alone = measure(CASES[name](), repeats)
        rows += [{**row, "peak_mib": mib, "peak": mib / memory[0]} for row, mib in zip(alone, memory, strict=True)]
        rows += on_two_ranks(name, repeats)
    return rows


COLUMNS = [
    "network",
    "ranks",
    "setting",
    "active",
    "step_s",
    "step",
    "flop_limit",
    "communicated",
    "optimizer",
    "event",
    "peak_mib",
    "peak",
]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.freeze", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats of which medians are taken")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    given = parser.parse_args()
    found = run(given.cases, given.repeats)
    print(json.dumps(found, indent=2) if given.json else markdown(found, COLUMNS))


if __name__ == "__main__":
    main()
