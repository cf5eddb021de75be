"""One run of a study's base settings: the same checks, records and mirror as a whole study, without a search."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fat_ray.errors import InputError, Interrupted, RecordError, RunFailedError
from fat_ray.events import RunEnd, Status
from fat_ray.records.manifest import read_manifest, read_study
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.records.reader import run_end
from fat_ray.spec.job import RunJob
from fat_ray.spec.study import StudySpec
from fat_ray.study.daemons import tied_to_servers
from fat_ray.study.environment import prepare, resolve_address
from fat_ray.study.opening import opened, reopened
from fat_ray.study.plan import plan
from fat_ray.study.space import with_params
from fat_ray.study.verdict import record_end
from fat_ray.train.lease import read_driver
from fat_ray.train.signals import interruptible
from fat_ray.train.stop import clear_requests

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
        Interrupted: After Ctrl-C or SIGTERM, when the run has saved a checkpoint and stopped, and its records are whole.
    """
    if spec.freeze.policy == "random_matched":
        raise InputError("freeze.policy = random_matched: a single run has no schedule to follow; use launch with this baseline")
    alone = spec.model_copy(update={"search": {}, "baselines": [], "seeds": [seed], "budget": spec.budget.model_copy(update={"trials": 1})})
    with (
        interruptible(),
        opened(alone, text, directory, command, kind="run") as (mirror, _),
        _under_ray(alone, directory) if ray else _without_ray() as train,
    ):
        return _follow(_job(alone, directory), train, mirror, quiet=quiet)


def resume_once(directory: Path, *, workers: int | None = None, ray: bool = False, quiet: bool = False) -> RunEnd | None:
    """Goes on with the single run of a directory, from its newest checkpoint, or else from the beginning.

    Args:
        directory: What `run_once` made.
        workers: Number of workers from now on; None: as before. With another number the run can no longer be equal to the bit.
        ray: As for `run_once`.
        quiet: As for `run_once`.

    Returns:
        How the run ended; None when it had ended already, for good, and nothing was done.

    Raises:
        InputError: Something given is wrong, or another process is at work in the directory.
        RecordError: The directory holds no study.
        RunFailedError: The run has no result.
        Interrupted: As for `run_once`.
    """
    spec = read_study(read_manifest(directory))
    if workers is not None:
        spec = spec.model_copy(update={"train": with_params(spec.run, {"train.workers": workers}).train})
    with interruptible(), reopened(spec, directory) as (mirror, _):
        job = _job(spec, directory).model_copy(update={"resume": True})
        before = run_end(directory, job.run)
        if before is not None and before.status not in (Status.STOPPED, Status.FAILED):
            mirror.catch_up([job.run])
            mirror.close()
            return None
        clear_requests(directory, job.run)
        with _under_ray(spec, directory) if ray else _without_ray() as train:
            mirror.begin_anew(job.run)
            return _follow(job, train, mirror, quiet=quiet)


def _job(spec: StudySpec, directory: Path) -> RunJob:
    """The one run of a study that has one, for the present driver."""
    (seed,) = spec.seeds
    return RunJob(
        study=spec.name,
        run=f"run-s{seed}",
        trial=None,
        seed=seed,
        role="single",
        spec=spec.run,
        directory=str(directory.absolute()),
        driver=read_driver(directory).number,
    )


@contextmanager
def _without_ray() -> Iterator[Train]:
    from fat_ray.train.local import run_local

    yield run_local


@contextmanager
def _under_ray(spec: StudySpec, directory: Path) -> Iterator[Train]:
    address = resolve_address(None)
    prepare(address)
    # Ray reads its environment when it is imported, so only now.
    from fat_ray.study.cluster import connect
    from fat_ray.train.run import fit, train_environment

    with connect(address, train_environment(spec.train)) as nodes, tied_to_servers(directory, lambda: None):
        plan(spec, nodes)
        yield lambda job, report: fit(job, report=report, placement_timeout_s=spec.budget.placement_timeout_s)


def _follow(job: RunJob, train: Train, mirror: WandbMirror, *, quiet: bool) -> RunEnd:
    """Trains, and after each evaluation says so and mirrors what the records gained."""
    began_s = time.monotonic()

    def say(line: str) -> None:
        if not quiet:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def report(metrics: Mapping[str, Any]) -> None:
        mirror.advance(job.run)
        for url in mirror.new_links().values():
            say(f"W&B      {url}")
        say(_progress(metrics, job.spec.train.steps, time.monotonic() - began_s))

    say(f"{job.run}: {job.spec.train.steps} steps, {job.spec.train.workers} worker(s), policy {job.spec.freeze.policy}")
    with _finishing(mirror, job.run):
        try:
            return train(job, report)
        except RunFailedError as error:
            _record_failure(job, str(error))
            raise


@contextmanager
def _finishing(mirror: WandbMirror, run: str) -> Iterator[None]:
    """Ends the mirror with the run, unless there is no time for it."""
    try:
        yield
    except Interrupted as interrupted:
        if interrupted.at_once:
            mirror.abandon()
        raise
    finally:
        mirror.finish(run)
        mirror.close()


def _record_failure(job: RunJob, reason: str) -> None:
    """Lets the records tell of a run that broke before it could."""
    directory = Path(job.directory)
    with suppress(RecordError, RunFailedError):  # the reason of the failure matters more
        if run_end(directory, job.run) is None:
            record_end(job, directory, Status.FAILED, reason)


def _progress(metrics: Mapping[str, Any], steps: int, elapsed_s: float) -> str:
    values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith("val/"))
    return f"step {metrics['step']}/{steps}  {values}  active {metrics['mean_active_fraction']:.0%}  {elapsed_s:.0f} s"
