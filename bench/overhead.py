"""What a study adds around training, warm beside stock: `python -m bench.overhead [--json]`. See bench/README.md."""

import argparse
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.tables import markdown
from fat_ray.records.reader import read_table
from fat_ray.spec.study import StudySpec
from fat_ray.study.launch import launch
from fat_ray.tasks.base import Batch, Direction

Row = dict[str, Any]
STEPS = 24
"""Of each run."""
KINDS = {"few": (2, True), "many": (STEPS, True), "unsaved": (STEPS, False)}
"""How often a run is evaluated, recorded and reported, and whether it saves a checkpoint each time."""


class Examples:
    """Labelled random points."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:  # noqa: ARG002  the protocol's
        """See `tasks.base.ExampleSet`."""
        points = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))[list(indices)]
        return points, (points.sum(1) > 0).float()


class Instant:
    """A task whose training takes next to no time, so that what is left is overhead."""

    metrics: Mapping[str, Direction] = {"loss": "minimize"}

    def build_model(self) -> nn.Module:
        """See `tasks.base.Task`, also below."""
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def train_set(self) -> Examples:
        """Points."""
        return Examples()

    def evaluation_sets(self) -> Mapping[str, Examples]:
        """The same points."""
        return {"val": Examples()}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy."""
        return functional.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])

    def accumulate(self, model: nn.Module, batch: Batch) -> Mapping[str, float]:
        """Sum of losses and number."""
        return {"loss": float(self.loss(model, batch)) * len(batch[0]), "count": float(len(batch[0]))}

    def finish(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss."""
        return {"loss": sums["loss"] / sums["count"]}


def make_task() -> Instant:
    """For the workers."""
    return Instant()


def study(executor: str, trials: int, kind: str, workers: int) -> StudySpec:
    """A study of one lane: trials run one after the other."""
    reports, saved = KINDS[kind]
    fields = {
        "name": f"{executor}-{kind}",
        "task": {"name": "bench.overhead:make_task"},
        "train": {
            "steps": STEPS,
            "evaluate_every": STEPS // reports,
            "workers": workers,
            "cpus_per_worker": 0.5,
            "checkpoint": {"every": None if saved else 0},
        },
        "search": {"train.optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2}},
        "objectives": [{"metric": "val/loss", "direction": "minimize"}],
        "sampler": {"name": "random"},
        "budget": {"trials": trials, "concurrency": 1},
        "baselines": [],
        "executor": executor,
        "wandb": {"mode": "disabled"},
    }
    return StudySpec.model_validate_json(json.dumps(fields))


def measured(executor: str, trials: int, kind: str, workers: int) -> tuple[list[float], list[float]]:
    """Seconds between two starts that were not spent in the run itself, and seconds of each run, from the records."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "study")
        launch(study(executor, trials, kind, workers), text="", directory=directory, quiet=True)
        runs = sorted(run.name for run in (directory / "records" / "runs").iterdir())
        starts = [read_table(directory, "runs", run)["started_at"][0].as_py().timestamp() for run in runs]
        seconds = [read_table(directory, "ends", run)["wall_s"][0].as_py() for run in runs]
    order = sorted(range(len(runs)), key=starts.__getitem__)
    between = [starts[b] - starts[a] - seconds[a] for a, b in itertools.pairwise(order)]
    return between, [seconds[number] for number in order[1:]]  # the first run of a lane starts the processes


def run(trials: Mapping[str, int], workers: int) -> list[Row]:
    """One row per executor."""
    rows = []
    for executor, number in trials.items():
        found = {kind: measured(executor, number, kind, workers) for kind in KINDS}
        between = [seconds for kind in KINDS for seconds in found[kind][0]]
        few, many, unsaved = (statistics.median(found[kind][1]) for kind in KINDS)
        rows.append(
            {
                "executor": executor,
                "workers": workers,
                "trials": number * len(KINDS),
                "between_runs_s": statistics.median(between),
                "between_runs_max_s": max(between),
                "per_report_ms": 1000 * (many - few) / (KINDS["many"][0] - KINDS["few"][0]),
                "of_it_checkpoint_ms": 1000 * (many - unsaved) / STEPS,
            }
        )
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--warm", type=int, default=12, help="trials of each warm study")
    parser.add_argument("--stock", type=int, default=3, help="trials of each stock study")
    parser.add_argument("--workers", type=int, default=2, help="DDP processes of each run")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))  # workers import this module
    rows = run({"warm": given.warm, "stock": given.stock}, given.workers)
    print(json.dumps(rows, indent=2) if given.json else markdown(rows))


if __name__ == "__main__":
    main()
