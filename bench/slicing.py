"""When is a layer quicker sliced than masked? `python -m bench.slicing [--json]`. bench/README.md says what is printed."""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fat_ray.freeze.sliced import Cut, active_runs, slice_layer
from fat_ray.freeze.slicing_rule import worth_slicing

ACTIVE = (0.25, 0.5, 0.75)
RUNS = (1, 2, 4, 16)
SECONDS = 4.0
"""Roughly what one layer may take."""

Row = dict[str, Any]

# a layer, the shape of its input, the dimension that is cut
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "Linear(64, 64)": (lambda: nn.Linear(64, 64), (64, 64), 0),
    "Linear(256, 256)": (lambda: nn.Linear(256, 256), (256, 256), 0),
    "Linear(1024, 1024)": (lambda: nn.Linear(1024, 1024), (8, 1024), 0),
    "Linear(192, 192)": (lambda: nn.Linear(192, 192), (1576, 192), 0),
    "Linear(384, 1536)": (lambda: nn.Linear(384, 1536), (1576, 384), 0),
    "Linear(256, 256), columns": (lambda: nn.Linear(256, 256), (256, 256), 1),
    "Linear(384, 1536), columns": (lambda: nn.Linear(384, 1536), (1576, 384), 1),
    "Conv2d(64, 64, 1)": (lambda: nn.Conv2d(64, 64, 1), (4, 64, 28, 28), 0),
    "Conv2d(192, 1152, 1)": (lambda: nn.Conv2d(192, 1152, 1, bias=False), (8, 192, 8, 8), 0),
    "Conv2d(64, 64, 3)": (lambda: nn.Conv2d(64, 64, 3, padding=1), (4, 64, 16, 16), 0),
    "Conv2d(128, 128, 3)": (lambda: nn.Conv2d(128, 128, 3, padding=1), (4, 128, 16, 16), 0),
    "Conv2d(128, 128, 3), columns": (lambda: nn.Conv2d(128, 128, 3, padding=1), (4, 128, 16, 16), 1),
    "Conv2d(192, 1152, 1), channels last": (lambda: nn.Conv2d(192, 1152, 1, bias=False), (8, 192, 8, 8), 0),
    "Conv2d(144, 144, 3), depthwise": (lambda: nn.Conv2d(144, 144, 3, padding=1, groups=144, bias=False), (8, 144, 32, 32), 0),
    "Conv2d(672, 672, 5), depthwise": (lambda: nn.Conv2d(672, 672, 5, padding=2, groups=672, bias=False), (8, 672, 8, 8), 0),
    "LayerNorm(384)": (lambda: nn.LayerNorm(384), (1576, 384), 0),
}


def runs_of(extent: int, active: float, num_runs: int) -> tuple[tuple[int, int], ...]:
    """Equal runs, evenly spread, that cover a part of a dimension."""
    size = round(extent * active / num_runs)
    return tuple((index * extent // num_runs, index * extent // num_runs + size) for index in range(num_runs))


class Step:
    """Forward, backward and AdamW update of one layer; `masked` blocks are cleared and put back as the freezer does it."""

    def __init__(self, layer: nn.Module, x: Tensor, masked: dict[str, tuple[int, list[tuple[int, int]]]]) -> None:
        runs = [leaf for _, leaves in active_runs(layer).values() for leaf in leaves]
        self.layer, self.x = layer, x.clone(memory_format=torch.preserve_format).requires_grad_()
        self.gradient = torch.randn_like(layer(self.x))
        self.optimizer = torch.optim.AdamW([*runs, *(p for p in layer.parameters() if p.requires_grad)])
        self.masked = [(layer.get_parameter(role), dim, run) for role, (dim, runs) in masked.items() for run in runs]
        self.seconds: dict[str, list[float]] = {"gradients": [], "step": []}

    def warm(self) -> None:
        """Brings into the cache what the step will need, as far as it fits: variants would else pay for their number."""
        self.layer(self.x).backward(self.gradient)

    def __call__(self) -> None:
        """Adds one measurement: CPU seconds of this thread."""
        self.x.grad = None
        started = time.thread_time()
        self.optimizer.zero_grad()
        self.layer(self.x).backward(self.gradient)
        self.seconds["gradients"].append(time.thread_time() - started)
        with torch.no_grad():
            blocks = [p.narrow(dim, start, stop - start) for p, dim, (start, stop) in self.masked]
            for p, dim, (start, stop) in self.masked:
                assert p.grad is not None
                p.grad.narrow(dim, start, stop - start).zero_()
            kept = [block.clone() for block in blocks]
            self.optimizer.step()
            for block, values in zip(blocks, kept, strict=True):
                block.copy_(values)
        self.seconds["step"].append(time.thread_time() - started)


def measure(name: str) -> list[Row]:
    """One row per active fraction and number of runs; all variants of a layer take turns."""
    torch.manual_seed(0)
    make, shape, dim = CASES[name]
    layer, x = make(), torch.randn(shape)
    x = x.contiguous(memory_format=torch.channels_last) if "channels last" in name or "depthwise" in name else x
    pairs, rows = [], []
    roles = [role for role, p in layer.named_parameters() if dim == 0 or p.ndim > 1]
    output = layer(x)
    positions = output.numel() // (output.shape[1] if x.ndim == 4 else output.shape[-1])
    extent = layer.get_parameter("weight").shape[dim]
    for active in ACTIVE:
        for num_runs in RUNS:
            runs = runs_of(extent, active, num_runs)
            frozen = [(stop, after) for (_, stop), (after, _) in zip(runs, [*runs[1:], (extent, extent)], strict=True)]
            sliced, masked = copy.deepcopy(layer), copy.deepcopy(layer)
            cuts = {role: Cut(dim, runs) for role in roles}
            chosen = {role: cut for role, cut in cuts.items() if role == "weight" or worth_slicing(layer, role, cut, positions)}
            sliced, masked = copy.deepcopy(layer), copy.deepcopy(layer)
            slice_layer(sliced, chosen)
            others = dict.fromkeys(cuts.keys() - chosen.keys(), (dim, frozen))
            pairs.append((Step(masked, x, dict.fromkeys(roles, (dim, frozen))), Step(sliced, x, others)))
            rule = worth_slicing(layer, "weight", cuts["weight"], positions)
            rows.append({"layer": name, "positions": positions, "active": active, "runs": num_runs, "rule": rule})
    started, rounds = time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - started < SECONDS:
        rounds += 1
        for pair in pairs:
            for step in pair:
                step.warm()
                step()
    for row, pair in zip(rows, pairs, strict=True):
        for part in ("gradients", "step"):
            masked_s, sliced_s = (statistics.median(step.seconds[part][1:]) for step in pair)
            row |= {f"masked_{part}_us": 1e6 * masked_s, f"sliced_{part}_us": 1e6 * sliced_s}
    return rows


def table(rows: list[Row]) -> str:
    """One line per layer and active fraction; cells: sliced over masked, gradients alone and whole step, and what the rule says."""
    lines = [f"| layer | positions | active | masked step | {' | '.join(f'{n} run' + 's' * (n > 1) for n in RUNS)} |", "| --- " * 8 + "|"]
    for first in range(0, len(rows), len(RUNS)):
        group = rows[first : first + len(RUNS)]
        cells = [
            f"{row['sliced_gradients_us'] / row['masked_gradients_us']:.2f}, {row['sliced_step_us'] / row['masked_step_us']:.2f}"
            + (" **slice**" if row["rule"] else "")
            for row in group
        ]
        head = group[0]
        lines.append(
            f"| {head['layer']} | {head['positions']} | {head['active']:.0%} | {head['masked_step_us']:.0f} µs | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures all layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in CASES for row in measure(name)]
    print(json.dumps(rows, indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
