"""How far replays are off, run by run: `python -m bench.forecast [--json] [--settings N]`. See bench/README.md."""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fat_ray.analysis import replay_check
from fat_ray.records.manifest import create_study
from fat_ray.spec.job import RunJob
from fat_ray.spec.load import load_study
from fat_ray.study.space import with_params
from fat_ray.train.local import run_local

STUDY = Path(__file__).parent.parent / "studies" / "quickstart.yaml"
OBSERVED = {"freeze.policy": "none", "fisher.record": "always", "fisher.every": 2}
OVER = ["train.workers=1", "task.image_size=64", "train.evaluate_every=60", "train.checkpoint.every=0"]


def settings(number: int) -> list[dict[str, Any]]:
    """Settings drawn from the quickstart's search space, half of them in the window of the observed run."""
    rng = np.random.default_rng(0)
    return [
        {
            "freeze.threshold": round(float(rng.uniform(-0.9, 0.4)), 3),
            "freeze.every": int(rng.choice([4, 8, 12, 16])),
            "fisher.every": int(rng.choice([2, 2, 4, 8])),
        }
        for _ in range(number)
    ]


def study(directory: Path, number: int) -> None:
    """The quickstart's run on small images: observed without freezing, then with each setting."""
    loaded = load_study(STUDY, OVER)
    create_study(directory, loaded.spec, loaded.text)
    for position, params in enumerate([OBSERVED, *settings(number)]):
        name = "observed" if position == 0 else f"t{position - 1:04d}"
        spec = with_params(loaded.spec.run, params)
        role = "baseline" if position == 0 else "search"
        run_local(RunJob(study="bench", run=f"{name}-s0", trial=None, seed=0, role=role, spec=spec, directory=str(directory)))  # type: ignore[arg-type]


def main() -> None:
    """Prints the table of `fat-ray compare --replay`, or JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--settings", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study(Path(folder) / "study", arguments.settings)
        found = replay_check.check([Path(folder) / "study"])
    print(json.dumps([asdict(pair) for pair in found.runs], indent=2) if arguments.json else replay_check.as_table(found, 120))


if __name__ == "__main__":
    main()
