"""What a trial costs the driver as a study grows: `python -m bench.scale [--json] [--trials N …]`. See bench/README.md."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.tables import markdown
from fat_ray.spec.study import StudySpec
from fat_ray.study.launch import launch

Row = dict[str, Any]
PAGE = os.sysconf("SC_PAGE_SIZE")


def study(trials: int, sampler: str, wandb: str) -> StudySpec:
    """A search whose runs train one step of next to nothing, in one worker, one after the other."""
    fields = {
        "name": f"scale-{trials}",
        "task": {"name": "bench.overhead:make_task"},
        "train": {"steps": 1, "evaluate_every": 1, "workers": 1, "checkpoint": {"every": 0}},
        "search": {"train.optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2}},
        "objectives": [{"metric": "val/loss", "direction": "minimize"}, {"metric": "mean_active", "direction": "minimize"}],
        "sampler": {"name": sampler},
        "budget": {"trials": trials, "concurrency": 1},
        "baselines": [],
        "executor": "warm",
        "wandb": {"mode": wandb},
    }
    return StudySpec.model_validate_json(json.dumps(fields))


class Watch:
    """Notes what the driver has used whenever a trial ends."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.cpu: list[float] = []
        self.memory: list[float] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        """See `fat_ray.study.announce`."""
        if event["event"] == "trial_ended":
            self.clock.append(time.perf_counter())
            self.cpu.append(time.process_time())
            self.memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20)

    def rates(self, part: slice) -> tuple[float, float]:
        """Milliseconds of the driver's CPU, and on the clock, per trial of a part of the study."""
        cpu, clock = self.cpu[part], self.clock[part]
        return 1000 * (cpu[-1] - cpu[0]) / (len(cpu) - 1), 1000 * (clock[-1] - clock[0]) / (len(clock) - 1)


def measured(trials: int, sampler: str, wandb: str) -> Row:
    """A whole study, in this process."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        outcome = launch(study(trials, sampler, wandb), text="", directory=Path(folder, "study"), quiet=True, on_event=watch)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    if outcome.failed or len(watch.cpu) != trials:
        raise SystemExit(f"{outcome.failed} runs of {trials} failed, {len(watch.cpu)} ended")
    quarter = max(2, trials // 4)
    first, last = watch.rates(slice(1, quarter + 1)), watch.rates(slice(-quarter, None))
    return {
        "trials": trials,
        "sampler": sampler,
        "wandb": wandb,
        "driver_ms_first": first[0],
        "driver_ms_last": last[0],
        "clock_ms_first": first[1],
        "clock_ms_last": last[1],
        "memory_mib_first": watch.memory[quarter],
        "memory_mib_last": watch.memory[-1],
        "disk_kib": size / 1024 / trials,
    }


def in_process(trials: int, sampler: str, wandb: str) -> Row:
    """The same in a process of its own, so that one study does not bear another's memory."""
    command = [sys.executable, "-m", "bench.scale", "--one", str(trials), "--sampler", sampler, "--wandb", wandb]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - ourselves
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 500, 2000], help="sizes of studies")
    parser.add_argument("--sampler", default="random", help="random, so that the sampler's own time does not count; or tpe, nsga2, …")
    parser.add_argument("--wandb", default="disabled", choices=["disabled", "offline"], help="with the mirror, or without")
    parser.add_argument("--one", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))  # workers import the task
    if given.one is not None:
        print(json.dumps(measured(given.one, given.sampler, given.wandb)))
        return
    rows = [in_process(trials, given.sampler, given.wandb) for trials in given.trials]
    print(json.dumps(rows, indent=2) if given.json else markdown(rows, digits=1))


if __name__ == "__main__":
    main()
