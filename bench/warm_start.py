"""Whether a warm start finds a better front in as many trials: `python -m bench.warm_start [--json] [--seeds N]`. See bench/README.md."""

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState

from fat_ray.records.manifest import create_study
from fat_ray.spec.load import load_study
from fat_ray.spec.study import StudySpec, as_json, num_trials
from fat_ray.study.journal import Journal
from fat_ray.study.ledger import Ledger
from fat_ray.study.search import StudySearch
from fat_ray.train.local import run_local

Row = dict[str, Any]
STUDY = Path(__file__).parent.parent / "studies" / "quickstart.yaml"
OVER = [
    "train.workers=1",
    "task.image_size=64",
    "train.evaluate_every=60",
    "train.checkpoint.every=0",
    "wandb.mode=disabled",
    "search.freeze.threshold={type: float, low: -1.5, high: 0.5}",
    "baselines=[{name: observed, policy: none, set: {fisher.record: always, fisher.every: 2}}]",
]


def spec(seed: int, trials: int, startup: int, warm: str) -> StudySpec:
    """The quickstart's study on small images, its thresholds over a range that nobody has narrowed yet."""
    more = [f"sampler.seed={seed}", f"sampler.startup_trials={startup}", f"budget.trials={trials}", f"search.warm_start={warm}"]
    return load_study(STUDY, [*OVER, *more]).spec


def run(study: StudySpec, directory: Path) -> list[tuple[float, float]]:
    """All trials one after the other, as Ray Tune would run them; of each that completed its F1 and mean active fraction."""
    create_study(directory, study, "")
    ledger = Ledger(num_trials(as_json(study)))
    search = StudySearch(study, directory, ledger, concurrency=1, executor="stock")
    number = 0
    while isinstance(search.suggest(f"id{number}"), dict):
        for job in ledger.of(f"id{number}").jobs:
            run_local(job)
        search.on_trial_complete(f"id{number}", {})
        number += 1
    total = search_total(directory, study)
    return [(told.values[0], told.values[1] / total) for told in Journal(study, directory).trials if told.state is TrialState.COMPLETE]


def search_total(directory: Path, study: StudySpec) -> int:
    """Entries of all groups."""
    from fat_ray.records.reader import run_start

    return run_start(directory, f"observed-s{study.seeds[0]}").total_elements


def hypervolume(points: list[tuple[float, float]]) -> float:
    """What the points dominate, of all F1 from 0 to 1 and all mean active fractions from 0 to 1."""
    volume, best = 0.0, 0.0
    edges = sorted({active for _, active in points} | {1.0})
    for low, high in itertools.pairwise(edges):
        best = max([best, *(f1 for f1, active in points if active <= low)])
        volume += best * (high - low)
    return volume


def compare(seed: int, trials: int, startup: int) -> Row:
    """Both ways to begin, with one seed of the sampler."""
    row: Row = {"seed": seed}
    for name, warm in (("random", "none"), ("replay", "replay")):
        with tempfile.TemporaryDirectory() as folder:
            found = run(spec(seed, trials, startup, warm), Path(folder) / "study")
        for count in (startup, trials):
            row[f"{name}_{count}"] = hypervolume(found[:count])
        active = np.array([value for _, value in found[:startup]])
        row[f"{name}_spread"] = float(np.ptp(active))
        row[f"{name}_between"] = int(((active > 0.35) & (active < 0.9)).sum())
    return row


def shown(row: Row) -> str:
    """A line of the table."""
    return f"| {' | '.join(f'{value:.4f}' if isinstance(value, float) else str(value) for value in row.values())} |"


def main() -> None:
    """Prints a table, or JSON; a row per seed as it comes, then means and what the differences are worth."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--startup", type=int, default=6)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for seed in range(arguments.seeds):
        rows.append(compare(seed, arguments.trials, arguments.startup))
        if not arguments.json:
            if seed == 0:
                print(f"| {' | '.join(rows[0])} |\n|{' --- |' * len(rows[0])}")
            print(shown(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(shown({key: "mean" if key == "seed" else float(np.mean([row[key] for row in rows])) for key in rows[0]}))
    for count in (arguments.startup, arguments.trials):
        gains = [row[f"replay_{count}"] - row[f"random_{count}"] for row in rows]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        print(f"after {count} trials: hypervolume {statistics.fmean(gains):+.4f} with replay, standard error {error:.4f}")


if __name__ == "__main__":
    main()
