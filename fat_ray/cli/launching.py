"""The commands that train, and `export`. Other rooms are imported when a command runs: `--help` stays quick."""

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fat_ray.cli import comparing
from fat_ray.cli.app import SESSION, add_notes, command, how_to_go_on, say, stop
from fat_ray.cli.options import Address, JsonLines, Out, Quiet, Settings, StudyDirectory, StudyFile, Wandb
from fat_ray.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from fat_ray.events import RunEnd
    from fat_ray.spec.load import LoadedStudy
    from fat_ray.study.launch import StudyOutcome


def _load(study: Path, settings: list[str], **options: object) -> "LoadedStudy":
    """The study file with `--set` and the options that are short for it."""
    from fat_ray.spec.load import load_study

    shorthands = [f"{field}={value}" for field, value in options.items() if value is not None]
    return load_study(study, [*settings, *shorthands])


@command("fat-ray launch studies/quickstart.yaml --set train.steps=40 --trials 8 --out results")
def launch(
    study: StudyFile,
    *,
    set_: Settings = [],  # noqa: B006 - typer copies defaults
    out: Out = None,
    address: Address = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Trials of the search; default: budget.trials.")] = None,
    wandb: Wandb = None,
    quiet: Quiet = False,
    json: JsonLines = False,
) -> None:
    """Run a study: the search and its baselines, then compare all runs and write the report."""
    loaded = _load(study, set_, **{"budget.trials": trials, "wandb.mode": wandb})
    if trials is not None and not loaded.spec.search:
        raise InputError(
            f"--trials {trials}: {study} searches nothing, so its base setting is run once; give search, or leave --trials out"
        )
    from fat_ray.study.launch import launch as launch_study
    from fat_ray.view.document import line_writer

    directory = (out or Path(loaded.spec.output)) / loaded.spec.name
    SESSION.directory = directory
    outcome = launch_study(
        loaded.spec,
        text=loaded.text,
        directory=directory,
        address=address,
        quiet=quiet,
        on_event=line_writer(sys.stdout) if json else None,
        command=tuple(sys.argv[1:]),
    )
    _show_outcome(outcome, directory, quiet=quiet, json=json)


def _show_outcome(outcome: "StudyOutcome", directory: Path, *, quiet: bool, json: bool) -> None:
    """The comparison, what the user should know, and the exit code."""
    if outcome.runs:
        _conclude(directory, shown=not json)
    _take_leave(outcome, directory, quiet=quiet)


def _take_leave(outcome: "StudyOutcome", directory: Path, *, quiet: bool) -> None:
    """The last words after a study, and its exit code. Unless it was quiet, the console has shown the notes already."""
    from fat_ray.study.ledger import Close

    for note in outcome.notes if quiet else ():
        typer.echo(f"warning: {note}", err=True)
    for ended in outcome.runs:
        if ended.status in ("failed", "diverged"):
            typer.echo(f"{ended.run} {ended.status}: {ended.reason}", err=True)
    if outcome.stopped_by is not None:
        stop(f"stopped on request{how_to_go_on()}", 128 + outcome.stopped_by)
    if outcome.failure:
        stop(outcome.failure, 1)
    if outcome.failed:
        stop(f"{outcome.failed} of {len(outcome.runs)} runs failed; tracebacks lie in {directory / 'logs'}", 1)
    if outcome.closed is Close.OUT_OF_DISK:
        stop(f"stopped for want of disk space: make some{how_to_go_on()}", 1)


@command("fat-ray run studies/quickstart.yaml --set freeze.policy=none --workers 2 --seed 1")
def run(
    study: StudyFile,
    *,
    set_: Settings = [],  # noqa: B006 - typer copies defaults
    out: Out = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="DDP processes; default: train.workers.")] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Train under Ray, or in processes of this machine.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the run; default: the first of seeds.")] = None,
    wandb: Wandb = None,
    quiet: Quiet = False,
) -> None:
    """Train the base settings of a study once, without a search."""
    loaded = _load(study, set_, **{"train.workers": workers, "wandb.mode": wandb})
    from fat_ray.study.single import run_once

    chosen = loaded.spec.seeds[0] if seed is None else seed
    directory = (out or Path(loaded.spec.output)) / f"{loaded.spec.name}-run-s{chosen}"
    train = functools.partial(run_once, loaded.spec, text=loaded.text, directory=directory, seed=chosen, ray=ray, quiet=quiet)
    _train_once(directory, lambda: train(command=sys.argv[1:]))


def _train_once(directory: Path, train: Callable[[], "RunEnd | None"]) -> None:
    """Trains a single run and shows how it ended, if there was something left to train."""
    SESSION.directory = directory
    try:
        end = train()
    except RunFailedError as error:
        raise RunFailedError(f"{error}; tracebacks lie in {directory / 'logs'}") from error
    if end is None:
        typer.echo(f"the run in {directory} has ended already; there is nothing to do", err=True)
        return
    _conclude(directory)
    if end.status != "completed":
        stop(f"the run ended as {end.status}: {end.reason}", 1)


@command("fat-ray resume out/quickstart")
def resume(
    directory: StudyDirectory,
    *,
    address: Address = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Of a single run: DDP processes from now on; default: as before.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Of a single run: train under Ray, or in processes of this machine.")] = False,
    quiet: Quiet = False,
    json: JsonLines = False,
) -> None:
    """Go on with a study, or a run, that was interrupted or killed: what had not ended goes on from its newest checkpoint."""
    from fat_ray.records.manifest import read_manifest

    SESSION.directory = directory
    is_run = read_manifest(directory).kind == "run"
    unfit = {"--address": is_run and address is not None, "--workers": not is_run and workers is not None, "--ray": not is_run and ray}
    for option in (option for option, given in unfit.items() if given):
        raise InputError(f"{option} is not for a {'single run' if is_run else 'study'}, which {directory} holds")
    if is_run:
        from fat_ray.study.single import resume_once

        _train_once(directory, lambda: resume_once(directory, workers=workers, ray=ray, quiet=quiet))
        return
    from fat_ray.study.launch import resume as resume_study
    from fat_ray.view.document import line_writer

    outcome = resume_study(directory, address=address, quiet=quiet, on_event=line_writer(sys.stdout) if json else None)
    if outcome is None:
        typer.echo(f"the study in {directory} is complete; there is nothing to do", err=True)
    else:
        _show_outcome(outcome, directory, quiet=quiet, json=json)


@command("fat-ray export out/quickstart-run-s0 --out model.safetensors\n  fat-ray export out/quickstart/t0003-s0 --out best.safetensors")
def export(
    place: Annotated[Path, typer.Argument(metavar="DIR|DIR/RUN", help="Directory of a study, or a run in it.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The safetensors file to write.", show_default=False)],
) -> None:
    """Write the weights of a run's newest checkpoint, for the plain model."""
    from fat_ray.engine.export import export_model

    exported = export_model(place, out)
    say(out)
    if exported.step < exported.steps:
        typer.echo(f"note: {exported.run} is at step {exported.step} of {exported.steps}", err=True)


def _conclude(directory: Path, *, shown: bool = True) -> None:
    """The end of a study or run: the report, and unless something else stands on stdout the comparison and where everything lies."""
    from fat_ray.api import write_report

    report_path = write_report(directory)
    if not shown:
        return
    text, damage = comparing.comparison_text([directory])
    say(text)
    add_notes(damage)
    say(f"\nstudy    {directory}\nrecords  {directory / 'records'}\nreport   {report_path}")
    for parent in sorted({str(path.parent) for path in directory.glob("wandb/**/offline-run-*/")}):
        say(f"W&B      wandb sync {shlex.quote(parent)}/offline-run-*")
