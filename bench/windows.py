"""How near a replay in a coarser window comes: `python -m bench.windows [--json] [--settings N]`. See bench/README.md."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fat_ray.replay import costs
from fat_ray.replay.recording import Recording, read_recording
from fat_ray.replay.settings import settings_of
from fat_ray.replay.simulate import replay
from fat_ray.spec.job import RunJob
from fat_ray.spec.load import load_study
from fat_ray.spec.run import RunSpec, merge, without_preset
from fat_ray.train.local import run_local

Row = dict[str, Any]
STUDY = Path(__file__).parent.parent / "studies" / "quickstart.yaml"
WINDOWS = (2, 4, 8)
STEPS = 96


def recorded(preset: str, window: int, folder: Path) -> Recording:
    """The quickstart's run on small images, without freezing, its drift recorded in this window."""
    base = without_preset(load_study(STUDY).spec.run.model_dump(mode="json"))
    over = {
        "preset": preset,
        "task": {"image_size": 64},
        "train": {"steps": STEPS, "evaluate_every": STEPS, "workers": 1, "checkpoint": {"every": 0}},
        "fisher": {"every": window, "record": "always"},
        "freeze": {"policy": "none", "floor": 0.05},
    }
    spec = RunSpec.model_validate_json(json.dumps(merge(base, over)))
    run = f"{preset}-{window}"
    run_local(RunJob(study="bench", run=run, trial=None, seed=0, role="single", spec=spec, directory=str(folder)))
    return read_recording(folder, run)


def changes(number: int) -> list[Row]:
    """Settings of all kinds, from those that freeze hardly anything to those that freeze nearly all at once."""
    rng = np.random.default_rng(0)
    return [
        {
            "freeze.threshold": float(rng.uniform(-1.2, 0.5)),
            "freeze.every": int(rng.choice([8, 16])),
            "freeze.warmup_steps": int(rng.choice([8, 24])),
            "freeze.cap": float(rng.uniform(0.1, 1)),
            "drift.score": str(rng.choice(["mean", "last"])),
            "drift.smoothing": float(rng.choice([0.0, 0.5, 0.9])),
        }
        for _ in range(number)
    ]


def compared(preset: str, source: Recording, target: Recording, given: list[Row]) -> Row:
    """Schedules of the target's window, from the source's drift and from its own."""
    window = target.spec.fisher.every
    coarse = replay(source, settings_of(source.spec, [{**change, "fisher.every": window} for change in given]))
    exact = replay(target, settings_of(target.spec, given))
    total = target.elements.sum()
    found, true = (costs.mean_active(target, schedules) / total for schedules in (coarse, exact))
    off = np.abs(found - true)
    frozen, really = coarse.frozen_at < STEPS, exact.frozen_at < STEPS
    union = (frozen | really).sum(1)
    alike = np.where(union > 0, (frozen & really).sum(1) / np.maximum(union, 1), 1.0)
    ranks = [values.argsort().argsort() for values in (found, true)]
    return {
        "preset": preset,
        "recorded": source.spec.fisher.every,
        "replayed": window,
        "median_off": round(float(np.median(off)), 3),
        "p90_off": round(float(np.quantile(off, 0.9)), 3),
        "max_off": round(float(off.max()), 3),
        "rank_correlation": round(float(np.corrcoef(*ranks)[0, 1]), 3),
        "median_jaccard": round(float(np.median(alike)), 2),
    }


def rows_of(preset: str, number: int) -> list[Row]:
    """One row per pair of windows."""
    with tempfile.TemporaryDirectory() as folder:
        found = [recorded(preset, window, Path(folder)) for window in WINDOWS]
    pairs = [(source, target) for i, source in enumerate(found) for target in found[i + 1 :]]
    return [compared(preset, source, target, changes(number)) for source, target in pairs]


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--settings", type=int, default=600)
    parser.add_argument("--presets", nargs="+", default=["corrected", "paper", "released"])
    arguments = parser.parse_args()
    rows = [row for preset in arguments.presets for row in rows_of(preset, arguments.settings)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")


if __name__ == "__main__":
    main()
