"""How long it takes to replay 10,000 settings: `python -m bench.replay [--json] [--settings N]`. See bench/README.md."""

import argparse
import json
import time
from typing import Any

import numpy as np

from fat_ray.events import GroupInfo
from fat_ray.replay import costs
from fat_ray.replay.recording import Costs, Recording
from fat_ray.replay.settings import settings_of
from fat_ray.replay.simulate import replay
from fat_ray.spec.run import RunSpec

Row = dict[str, Any]
CASES = {
    "quickstart": {"groups": 262, "steps": 60, "window": 2, "every": (4, 16, 4)},
    "paper": {"groups": 303, "steps": 100_000, "window": 300, "every": (3000, 15_000, 3000)},
    "large": {"groups": 1000, "steps": 10_000, "window": 100, "every": (500, 2000, 500)},
}
"""Like the quickstart; like the paper's runs, m = 300 and n = 3000; and more of everything."""


def recording(groups: int, steps: int, window: int) -> Recording:
    """Drift that falls as learning settles, of layers of four groups each."""
    rng = np.random.default_rng(0)
    updates = np.arange(0, steps, window)
    distance = 0.1 * rng.gamma(2.0, size=(len(updates), groups)) * np.exp(-updates / steps)[:, None]
    distance[0] = np.nan
    infos = [GroupInfo(f"layer{i // 4}[{i % 4}]", f"layer{i // 4}", "Linear", int(rng.integers(64, 65_536))) for i in range(groups)]
    layers = list(dict.fromkeys(info.layer for info in infos))
    return Recording(
        run="none-s0",
        seed=0,
        spec=RunSpec.model_validate({"fisher": {"every": window}, "train": {"steps": steps}}),
        steps=steps,
        groups=infos,
        updates=updates,
        distance=distance,
        active=np.ones(distance.shape, np.bool_),
        dead=np.zeros(groups, np.bool_),
        costs=Costs(np.ones(steps), 0.9, 1.0, layers, rng.random(len(layers))),
    )


def changes(number: int, every: tuple[int, int, int], window: int, *, grid: bool) -> list[Row]:
    """Settings that differ in everything; of a grid, ten ways to smooth in all, else one of its own for each."""
    rng = np.random.default_rng(1)
    smoothing = rng.choice(np.linspace(0, 0.9, 10), number) if grid else rng.random(number)
    return [
        {
            "freeze.threshold": float(rng.uniform(-1.5, 0.5)),
            "freeze.every": int(rng.choice(np.arange(every[0], every[1] + 1, every[2]))),
            "freeze.floor": float(rng.uniform(0, 0.5)),
            "freeze.cap": float(rng.uniform(0.1, 1)),
            "freeze.warmup_steps": int(rng.integers(0, 3) * every[0]),
            "drift.score": str(rng.choice(["mean", "last", "total_variation"])),
            "drift.smoothing": float(smoothing[i]),
            "fisher.every": int(rng.choice([1, 2])) * window,
        }
        for i in range(number)
    ]


def measure(name: str, number: int, *, grid: bool) -> Row:
    """Seconds from settings in words to N̄ and FLOPs of each."""
    case = CASES[name]
    made = recording(case["groups"], case["steps"], case["window"])
    given = changes(number, case["every"], case["window"], grid=grid)
    started = time.perf_counter()
    settings = settings_of(made.spec, given)
    schedules = replay(made, settings)
    active, flops = costs.mean_active(made, schedules), costs.flops(made, schedules)
    spent = time.perf_counter() - started
    assert flops is not None
    decisions = sum(len(range(c["freeze.every"], made.steps, c["freeze.every"])) for c in given)
    return {
        "case": name,
        "settings": number,
        "smoothings": len({c["drift.smoothing"] for c in given}),
        "groups": case["groups"],
        "updates": len(made.updates),
        "decisions": decisions,
        "seconds": round(spent, 2),
        "mean_active": f"{active.min() / made.elements.sum():.2f} to {active.max() / made.elements.sum():.2f}",
    }


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--settings", type=int, default=10_000)
    arguments = parser.parse_args()
    rows = [measure(name, arguments.settings, grid=grid) for name in CASES for grid in (True, False)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")


if __name__ == "__main__":
    main()
