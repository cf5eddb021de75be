"""The progress of a study on stderr: a live table on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fat_ray.events import Status
from fat_ray.spec.study import StudySpec, as_json, shown_objective
from fat_ray.study.ledger import Ledger, Trial

_STYLES: Mapping[str, str] = {
    "waiting": "dim",
    "running": "cyan",
    "stopping": "yellow",
    "completed": "green",
    "pruned": "yellow",
    "stopped": "yellow",
    "diverged": "bold red",
    "failed": "bold red",
}
_MIN_ROWS = 5


class ConsoleCallback(Callback):  # type: ignore[misc]
    """Shows the ledger of a study while Tune runs it.

    Args:
        spec: The study.
        ledger: Its trials.
        quiet: Show nothing.
        console: Where to; default stderr.
    """

    def __init__(self, spec: StudySpec, ledger: Ledger, *, quiet: bool = False, console: Console | None = None) -> None:
        self._spec, self._ledger, self._quiet = spec, ledger, quiet
        self._console = console or Console(stderr=True)
        self._labels = short_labels([*spec.search])
        self._metric = shown_objective(as_json(spec)).metric
        # Decided now: stdout may be redirected while the study runs.
        self._is_live = self._console.is_terminal and sys.stdout.isatty() and not quiet
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a snapshot of its callbacks, and a live display has locks."""
        return {}

    def setup(self, *args: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Starts the live table."""
        if self._is_live:
            self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=4, redirect_stdout=False)
            self._live.start()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per trial that starts."""
        ours = self._ledger.of(trial.trial_id)
        self._line(f"{ours.name} started{self._with_setting(ours)}")

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per evaluation."""
        ours = self._ledger.of(trial.trial_id)
        if "step" in result:
            self._line(f"{ours.name} step {ours.step}/{ours.steps} {self._metric} {self._value(ours)} active {self._active(ours)}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per trial that ended."""
        self._ended(self._ledger.of(trial.trial_id))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """A line per trial whose process died."""
        self._ended(self._ledger.of(trial.trial_id))

    def close(self) -> None:
        """Leaves the last state of the table on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _ended(self, trial: Trial) -> None:
        reason = f": {trial.reason}" if trial.reason else ""
        ledger, left = self._ledger, self._time_left()
        done = sum(other.status is not None for other in ledger.trials)
        seconds = duration(trial.elapsed_s(time.monotonic()))
        self._line(f"{trial.name} {trial.status} after {seconds}{reason} ({done} of {ledger.total} done, {left})")

    def _line(self, text: str) -> None:
        if not self._quiet and not self._is_live:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The header and the table of trials, the latest at the bottom."""
        now_s = time.monotonic()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, justify in (("trial", "left"), ("setting", "left"), ("status", "left"), ("step", "right"), ("", "left")):
            table.add_column(name, justify=justify, no_wrap=name != "setting", overflow="ellipsis")  # type: ignore[arg-type]
        for name in (f"last {self._metric}", "active", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for trial in visible(self._ledger.trials, max(_MIN_ROWS, self._console.height - 6)):
            table.add_row(*self._row(trial, now_s))
        return Group(self._header(now_s), table)

    def _header(self, now_s: float) -> RenderableType:
        ledger = self._ledger
        failed = ledger.count(Status.FAILED, Status.DIVERGED)
        text = Text.assemble(
            (self._spec.name, "bold"),
            f"  {ledger.count(Status.COMPLETED)} done",
            f" · {ledger.num_running} running · {ledger.count(Status.PRUNED)} pruned · ",
            (f"{failed} failed", "bold red" if failed else ""),
            f"  of {ledger.total}  {duration(now_s - ledger.started_s)} so far, {self._time_left()}",
        )
        if ledger.close is not None:
            text.append(f"  ending early: {ledger.close}", "yellow")
        return Group(text, ProgressBar(total=1.0, completed=ledger.progress, width=min(60, self._console.width)), Text())

    def _row(self, trial: Trial, now_s: float) -> list[RenderableType]:
        word = state(trial)
        reached = f"{trial.steps if trial.status is Status.COMPLETED else trial.step}/{trial.steps}"
        bar = ProgressBar(
            total=1.0, completed=trial.progress if trial.status in (None, Status.COMPLETED) else trial.step / trial.steps, width=10
        )
        setting = Text(trial.reason, "red") if trial.status in (Status.FAILED, Status.DIVERGED) else Text(self._setting(trial))
        elapsed = duration(trial.elapsed_s(now_s))
        return [trial.name, setting, Text(word, _STYLES[word]), reached, bar, self._value(trial), self._active(trial), elapsed]

    def _with_setting(self, trial: Trial) -> str:
        setting = self._setting(trial)
        return f" with {setting}" if setting else ""

    def _setting(self, trial: Trial) -> str:
        if trial.name == "none":
            return "full fine-tuning"
        return " ".join(f"{self._labels.get(key, key)}={short(value)}" for key, value in trial.params.items())

    def _value(self, trial: Trial) -> str:
        value = trial.last(self._metric)
        return "–" if value is None else f"{value:.3f}"

    def _active(self, trial: Trial) -> str:
        value = trial.last("mean_active_fraction")
        return "–" if value is None else f"{100 * value:.0f} %"

    def _time_left(self) -> str:
        left_s = self._ledger.time_left_s(time.monotonic())
        return "time left unknown" if left_s is None else f"about {duration(left_s)} left"


def state(trial: Trial) -> str:
    """One word for what a trial is doing, or how it ended."""
    if trial.status is not None:
        return trial.status.value
    if trial.started_s is None:
        return "waiting"
    return "stopping" if trial.asked_to_stop else "running"


def visible(trials: Sequence[Trial], rows: int) -> list[Trial]:
    """The trials that fit on the screen: all that are not over, then the latest; in their order."""
    live = [trial for trial in trials if trial.status is None]
    over = [trial for trial in trials if trial.status is not None]
    shown = {trial.name for trial in live[-rows:] + over[max(0, len(over) - max(0, rows - len(live))) :]}
    return [trial for trial in trials if trial.name in shown]


def short_labels(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key the shortest ending that no other key has: ``threshold``, but ``freeze.every`` beside ``fisher.every``."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        labels[key] = next(ending for ending in endings if sum(f".{other}".endswith(f".{ending}") for other in keys) == 1)
    return labels


def short(value: object) -> str:
    """A searched value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Such as ``42 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
