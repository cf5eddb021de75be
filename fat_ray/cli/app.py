"""What all commands share: the application, the boundary that turns errors into one line and an exit code, and how they write.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 the study or a run failed, 2 bad input, 130 or 143
after Ctrl-C or SIGTERM.
"""

import contextlib
import functools
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fat_ray import __version__
from fat_ray.errors import FatRayError
from fat_ray.records.redact import scrub

app = typer.Typer(
    help="Distributed hyperparameter studies for Fisher-guided progressive freezing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Session:
    """What the error boundary must know of the command that runs."""

    debug: bool = False
    directory: Path | None = None


SESSION = Session()


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def _main(
    *,
    _version: Annotated[bool, typer.Option("--version", help="Show the version and stop.", callback=_show_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    SESSION.debug, SESSION.directory = debug, None


def command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command that never shows a traceback, with an example at the end of its help."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            with boundary():
                function(*args, **kwargs)

        return app.command(epilog=f"\b\nExample:\n  {example}")(guarded)

    return register


@contextlib.contextmanager
def boundary() -> Iterator[None]:
    """Turns whatever a command raises into one message on stderr and an exit code."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except KeyboardInterrupt as stopped:
        stop(f"stopped{how_to_go_on()}", getattr(stopped, "exit_code", 130))
    except FatRayError as error:
        if SESSION.debug:
            _show_traceback()
        stop(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the boundary: nothing may reach the user as a traceback
        log = None if SESSION.debug else _write_log()
        if log is None:
            _show_traceback()
        where = f"; the traceback lies in {log}" if log else ""
        stop(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}{where}", 1)


def how_to_go_on() -> str:
    """What to say of a study that was interrupted, if something of it is there."""
    directory = SESSION.directory
    return f"; go on with: fat-ray resume {shlex.quote(str(directory))}" if directory and (directory / "study.json").exists() else ""


def stop(message: str, exit_code: int) -> None:
    """Ends the command with one line on stderr."""
    typer.echo(f"fat-ray: {scrub(message)}", err=True)
    raise typer.Exit(exit_code)


def say(text: object) -> None:
    """Writes a result to stdout."""
    with writing_stdout():
        typer.echo(text)


def add_notes(notes: Iterable[str]) -> None:
    """Writes what a reader should know besides to stderr, a line each."""
    for note in notes:
        typer.echo(f"note: {scrub(note)}", err=True)


@contextlib.contextmanager
def writing_stdout() -> Iterator[None]:
    """Within, a stdout that takes no more, such as a file on a full disk, ends the command with one message: it is no defect."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):  # else Python tries again on its way out, and says so
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        stop(f"cannot write to stdout: {error.strerror or error}", 1)


def _show_traceback() -> None:
    typer.echo(scrub(traceback.format_exc()), err=True, nl=False)


def _write_log() -> Path | None:
    """The current exception's traceback in a file of the study, or of the temporary directory where there is no study yet."""
    logs = SESSION.directory / "logs" if SESSION.directory else None
    with (
        contextlib.suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", prefix="fat-ray-", suffix=".log", dir=logs if logs and logs.is_dir() else None, delete=False, encoding="utf-8"
        ) as file,
    ):
        file.write(scrub(traceback.format_exc()))
        return Path(file.name)
    return None
