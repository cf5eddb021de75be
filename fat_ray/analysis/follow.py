"""The status of a study on a terminal: once, or anew every few seconds until the study is over."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from fat_ray.analysis.status import read_status
from fat_ray.errors import InputError
from fat_ray.records.driver import ENDING, RUNNING, UNKNOWN
from fat_ray.view.render import render

EVERY_S = 2.0
WIDTH = 120
"""Columns where there is no terminal to ask."""


def show(directory: Path | str, console: Console | None = None) -> None:
    """Prints how a study stands, with all its trials.

    Raises:
        RecordError: There is no study, or its records cannot be read.
    """
    console = console or _stdout()
    console.print(render(read_status(directory), console))


def follow(directory: Path | str, console: Console | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
    """Shows it anew until the study is over or Ctrl-C comes.

    Raises:
        InputError: stdout is no terminal.
        RecordError: As for `show`.
    """
    console = console or _stdout()
    if not console.is_terminal:
        raise InputError("--watch needs a terminal; --json or no option prints the status once")
    picture = read_status(directory)
    with Live(render(picture, console, height=console.height), console=console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while picture.state in (RUNNING, ENDING, UNKNOWN):
            sleep(EVERY_S)
            picture = read_status(directory)
            live.update(render(picture, console, height=console.height), refresh=True)


def _stdout() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
