"""The command `submit`: a study as a job of a cluster, followed from here for as long as anybody wants."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fat_ray.cli.app import add_notes, command, say, stop, writing_stdout
from fat_ray.cli.options import Settings, Wandb
from fat_ray.errors import InputError

if TYPE_CHECKING:
    from fat_ray.study.submit import Client


@command(
    "fat-ray submit studies/quickstart.yaml --address http://127.0.0.1:8265 --out /mnt/shared/results"
    "\n  fat-ray submit --follow quickstart-1a2b3c4d --address http://127.0.0.1:8265"
)
def submit(  # noqa: PLR0913 - an argument per option
    study: Annotated[Path | None, typer.Argument(metavar="STUDY.yaml", help="The study file.", show_default=False)] = None,
    *,
    address: Annotated[
        str | None, typer.Option("--address", metavar="URL", help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Directory that all nodes share, which gets the study's own.")
    ] = None,
    set_: Settings = [],  # noqa: B006 - typer copies defaults
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Trials of the search; default: budget.trials.")] = None,
    wandb: Wandb = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study that was interrupted there.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Only send it, and print the id of its job.")] = False,
    follow: Annotated[str | None, typer.Option("--follow", metavar="JOB", help="Send nothing; follow a job that was sent before.")] = None,
) -> None:
    """Send a study to a cluster as a job, and show its output; it goes on when this command ends."""
    if (study is None) == (follow is None):
        raise InputError("give either STUDY.yaml, to send it, or --follow JOB, to follow one that was sent")
    from fat_ray.spec.load import load_study
    from fat_ray.study import submit as jobs

    if study is None:
        client, notes = jobs.connect(address)
        add_notes(notes)
        _follow(client, str(follow), address)
        return
    overrides = [*set_, *([f"budget.trials={trials}"] if trials else []), *([f"wandb.mode={wandb.value}"] if wandb else [])]
    loaded = load_study(study, overrides)
    client, notes = jobs.connect(address)
    add_notes(notes)
    job, modules = jobs.submit(client, loaded, overrides, out or loaded.spec.output, resume=resume)
    typer.echo(f"sent with {', '.join(modules)}" if modules else "sent", err=True)
    if detach:
        say(job)
        return
    typer.echo(f"the job goes on without this command; to see it again: {_again(job, address)}", err=True)
    _follow(client, job, address)


def _follow(client: "Client", job: str, address: str | None) -> None:
    from fat_ray.study.submit import follow

    try:
        end = follow(client, job, _write)
    except KeyboardInterrupt:
        stop(f"no longer followed; the job goes on: {_again(job, address)}", 130)
    if end.exit_code:
        stop(end.message or f"the study ended with exit code {end.exit_code}", end.exit_code)


def _write(text: str) -> None:
    with writing_stdout():
        typer.echo(text, nl=False)


def _again(job: str, address: str | None) -> str:
    where = f" --address {shlex.quote(address)}" if address and address != os.environ.get("RAY_API_SERVER_ADDRESS") else ""
    return f"fat-ray submit --follow {job}{where}"
