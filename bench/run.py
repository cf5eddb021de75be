"""The quickstart's task trained to the end with and without freezing: `python -m bench.run [--json]`. See bench/README.md."""

import argparse
import json
import resource
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.tables import markdown
from fat_ray.events import RunEnd, Status
from fat_ray.records.reader import read_table
from fat_ray.spec.job import RunJob
from fat_ray.spec.load import load_study
from fat_ray.spec.run import RunSpec, merge
from fat_ray.train.local import run_local

STUDY = Path(__file__).parent.parent / "studies" / "quickstart.yaml"
FREEZE = {"policy": "fisher_drift", "threshold": 0.0, "every": 6, "warmup_steps": 6, "floor": 0.1, "cap": 0.6}
"""Ends near 10 % active: every event freezes what lies below the mean, until the floor is reached."""
RATIOS = ("wall_s", "cpu_s", "train_s", "flops", "mean_active_fraction")
Row = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """How a run ended, the CPU seconds of all its processes, their start included, and what of its elements was active in the end.

    CPU seconds tell less of who else is at work here.
    """

    end: RunEnd
    cpu_s: float
    ends_active: float

    def __getitem__(self, key: str) -> float:
        return self.cpu_s if key == "cpu_s" else float(getattr(self.end, key))


def cpu_seconds() -> float:
    """Of this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def specs(workers: int) -> dict[str, RunSpec]:
    """The quickstart's run without freezing, and with it."""
    base = load_study(STUDY).spec.run.model_dump(mode="json")
    base = merge(base, {"train": {"workers": workers}})
    return {
        name: RunSpec.model_validate(merge(base, {"freeze": freeze})) for name, freeze in (("none", {"policy": "none"}), ("drift", FREEZE))
    }


def trained(name: str, spec: RunSpec, seed: int) -> Trained:
    """One run to its end, its records thrown away."""
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        job = RunJob(study="bench", run=f"{name}-s{seed}", trial=None, seed=seed, role="single", spec=spec, directory=folder)
        end = run_local(job)
        active = read_table(folder, "steps", job.run)["active_elements"].to_pylist()
    assert end.status is Status.COMPLETED, end.reason
    return Trained(end, cpu_seconds() - before, active[-1] / active[0])


def run(workers: int, seeds: int) -> list[Row]:
    """One row per seed; both runs of a seed one after the other, the order changing from seed to seed."""
    both, rows = specs(workers), []
    for seed in range(seeds):
        names = list(both) if seed % 2 == 0 else list(both)[::-1]
        runs = {name: trained(name, both[name], seed) for name in names}
        none, drift = runs["none"], runs["drift"]
        row: Row = {"seed": seed, "workers": workers}
        row |= {key: drift[key] / none[key] for key in RATIOS}
        row["drift_ends_active"] = drift.ends_active
        row |= {f"none_{key}": none[key] for key in ("wall_s", "cpu_s", "train_s")}
        for split in ("val", "test", "zero_shot"):
            row |= {f"{name}_{split}_f1": one.end.final[f"{split}/f1"] for name, one in runs.items()}
        rows.append(row)
    return rows


def table(rows: list[Row]) -> str:
    """As Markdown, with a row of medians."""
    middle = {column: statistics.median(row[column] for row in rows) for column in rows[0]} | {"seed": "median"}
    return markdown([*rows, middle])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="DDP processes of each run")
    given = parser.parse_args()
    rows = run(given.workers, given.seeds)
    print(json.dumps(rows, indent=2) if given.json else table(rows))


if __name__ == "__main__":
    main()
