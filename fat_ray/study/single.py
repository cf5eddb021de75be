"""One run of a study's base settings: the same checks, records and mirror as a whole study, without a search."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fat_ray.errors import InputError, OutputError
from fat_ray.events import RunEnd
from fat_ray.records.manifest import create_study
from fat_ray.records.wandb import WandbMirror
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import StudySpec

Report = Callable[[dict[str, Any]], None]
Train = Callable[[RunJob, Report], RunEnd]
"""Trains a job to its end, and tells the metrics of each evaluation on the way."""


def run_once(
    spec: StudySpec, *, text: str, directory: Path, seed: int, ray: bool = False, quiet: bool = False, command: Sequence[str] = ()
) -> RunEnd:
    """Trains the base settings of a study once and returns how the run ended; a study directory with this one run is made.

    Args:
        spec: The study; its search and baselines are left aside.
        text: The study file as written.
        directory: The directory to make; absent or empty.
        seed: Seed of the run.
        ray: Train under Ray (that of `RAY_ADDRESS`, else one of its own) rather than in processes of this machine.
        quiet: Print no progress to stderr.
        command: Arguments of the command line, for the manifest.

    Raises:
        InputError: Something given is wrong; nothing was started.
        RunFailedError: The run has no result.
        KeyboardInterrupt: After Ctrl-C, when the run has stopped and its records are whole.
    """
    from fat_ray.tasks.registry import check_task

    if spec.freeze.policy == "random_matched":
        raise InputError("freeze.policy = random_matched: a single run has no schedule to follow; use launch with this baseline")
    check_task(spec.task)
    alone = spec.model_copy(update={"search": {}, "baselines": [], "seeds": [seed], "budget": spec.budget.model_copy(update={"trials": 1})})
    with _under_ray(alone) if ray else _without_ray() as train, _study(alone, text, directory, command) as mirror:
        job = RunJob(
            study=spec.name, run=f"run-s{seed}", trial=None, seed=seed, role="single", spec=spec.run, directory=str(directory.absolute())
        )
        return _follow(job, train, mirror, quiet=quiet)


@contextmanager
def _without_ray() -> Iterator[Train]:
    from fat_ray.train.local import run_local

    yield run_local


@contextmanager
def _under_ray(spec: StudySpec) -> Iterator[Train]:
    from fat_ray.study.cluster import connect
    from fat_ray.study.plan import plan

    with connect(None, spec) as nodes:
        plan(spec, nodes)
        from fat_ray.train.run import fit

        yield lambda job, report: fit(job, report=report)


@contextmanager
def _study(spec: StudySpec, text: str, directory: Path, command: Sequence[str]) -> Iterator[WandbMirror]:
    """Makes the study's directory and opens its mirror; a mirror that cannot write leaves no directory behind."""
    create_study(directory, spec, text, command=command)
    mirror = WandbMirror(directory, spec.wandb)
    try:
        mirror.check_writable()
    except OutputError:
        shutil.rmtree(directory)
        raise
    with closing(mirror):
        yield mirror


def _follow(job: RunJob, train: Train, mirror: WandbMirror, *, quiet: bool) -> RunEnd:
    """Trains, and after each evaluation says so and mirrors what the records gained."""
    began_s = time.monotonic()

    def say(line: str) -> None:
        if not quiet:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def report(metrics: Mapping[str, Any]) -> None:
        mirror.advance(job.run)
        say(_progress(metrics, job.spec.train.steps, time.monotonic() - began_s))

    say(f"{job.run}: {job.spec.train.steps} steps, {job.spec.train.workers} worker(s), policy {job.spec.freeze.policy}")
    try:
        return train(job, report)
    finally:
        mirror.finish(job.run)


def _progress(metrics: Mapping[str, Any], steps: int, elapsed_s: float) -> str:
    values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith("val/"))
    return f"step {metrics['step']}/{steps}  {values}  active {metrics['mean_active_fraction']:.0%}  {elapsed_s:.0f} s"
