"""The progress of a study on stderr: a live picture on a terminal or in a notebook, plain lines elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Callable
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console, RenderableType
from rich.live import Live

from fat_ray.spec.study import StudySpec
from fat_ray.study.ledger import Ledger
from fat_ray.study.portrait import Portrait
from fat_ray.view import text
from fat_ray.view.picture import TrialLine
from fat_ray.view.render import as_html, left, render, setting, value

REFRESH_PER_S = 1.0

ShowHtml = Callable[[str], None]


class ConsoleCallback(Callback):  # type: ignore[misc]
    """Shows a study while Tune runs it.

    Args:
        spec: The study.
        ledger: Its trials.
        quiet: Show nothing.
        plain: Lines even on a terminal or in a notebook.
        console: Where to; default stderr.
        show_html: Shows a page in the place of the last one, in a notebook; None elsewhere.
    """

    def __init__(
        self,
        spec: StudySpec,
        ledger: Ledger,
        *,
        quiet: bool = False,
        plain: bool = False,
        console: Console | None = None,
        show_html: ShowHtml | None = None,
    ) -> None:
        self._ledger, self._quiet = ledger, quiet
        self._objectives = spec.objectives
        self._portrait = Portrait(spec, ledger)
        self._metric = self._portrait.shown.metric
        self._console = console or Console(stderr=True, force_jupyter=False)
        # Of the process, whatever it is redirected to while the study runs.
        stdout_is_terminal = sys.__stdout__ is not None and sys.__stdout__.isatty()
        self._is_live = self._console.is_terminal and stdout_is_terminal and not quiet and not plain
        self._live: Live | None = None
        self._show_html = None if quiet or plain else show_html
        self._next_page_s = float("-inf")
        self._width = 0
        self._told = 0
        self._is_over = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of its callbacks, and a live display has locks."""
        return {}

    def setup(self, *args: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Starts the live picture."""
        if self._is_live:
            self._width = self._console.width
            self._live = Live(
                get_renderable=self.render, console=self._console, refresh_per_second=REFRESH_PER_S, redirect_stdout=False, screen=False
            )
            self._live.start()

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per warning; in a notebook, the picture every now and then."""
        self._warn()
        now_s = time.monotonic()
        if self._show_html is not None and now_s >= self._next_page_s:
            self._next_page_s = now_s + 1 / REFRESH_PER_S
            self._show_html(as_html(self._portrait()))

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per trial that starts."""
        line = self._of(trial)
        given = "full fine-tuning" if line.name == "none" else setting(line)
        self._line(f"{line.name} started" + (f" with {given}" if given else ""))

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per evaluation."""
        if "step" in result:
            line = self._of(trial)
            seed = f" seed {line.seeds_done + 1}/{line.seeds}" if line.seeds > 1 else ""
            share = text.percent(line.active[-1][1] if line.active else None)
            self._line(f"{line.name}{seed} step {line.step}/{line.steps}: last {self._metric} {text.score(line.last)}, active {share}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per trial that ended."""
        self._ended(self._of(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per trial whose process died."""
        self._ended(self._of(trial))

    def close(self, state: str, detail: str) -> None:
        """Leaves the last picture on the screen, with all warnings.

        Args:
            state: How the study ended, see `fat_ray.records.driver`.
            detail: Why.
        """
        self._warn()
        self._portrait.ended, self._is_over = (state, detail), True
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._show_html is not None:
            self._show_html(as_html(self._portrait()))

    def render(self) -> RenderableType:
        """What the terminal shows now. One that became narrower has broken the lines of the last picture: it is wiped."""
        width, height = self._console.size
        if width < self._width:
            self._console.clear()
        self._width = width
        return render(self._portrait(), self._console, height=height, all_warnings=self._is_over)

    def _of(self, trial: TuneTrial) -> TrialLine:
        return self._portrait.line(self._ledger.of(trial.trial_id), time.monotonic())

    def _ended(self, line: TrialLine) -> None:
        picture = self._portrait()
        reached = ", ".join(f"{goal.metric} {value(goal, line, place)}" for place, goal in enumerate(self._objectives) if line.values)
        what = f": {line.reason}" if line.reason else f": {reached} at budget" if reached else ""
        where = f"{picture.done} of {picture.total} trials done, {left(picture.time_left_s)}"
        self._line(f"{line.name} {line.state} after {text.duration(line.elapsed_s)}{what} ({where})")

    def _warn(self) -> None:
        """Each warning once; the live picture shows them by itself."""
        for note in self._ledger.notes[self._told :]:
            self._line(f"warning: {note}")
            self._told += 1

    def _line(self, words: str) -> None:
        if not self._quiet and not self._is_live and self._show_html is None:
            self._console.print(words, markup=False, highlight=False, soft_wrap=True)


def notebook() -> ShowHtml | None:
    """Shows pages in the notebook's present cell, each in the place of the last one; None where this is no notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or type(shell).__name__ != "ZMQInteractiveShell":
        return None
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return lambda page: handle.update(HTML(page))
