"""The picture of a study for a terminal: how far it is, its front, its trials, and what went wrong; as wide and high as there is room."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fat_ray.events import Status
from fat_ray.spec.study import Objective
from fat_ray.view import text
from fat_ray.view.picture import DONE, INTERRUPTED, TROUBLE, WAITING, Picture, TrialLine

STYLES: Mapping[str, str] = {
    "waiting": "dim",
    "running": "cyan",
    "stopping": "yellow",
    "interrupted": "yellow",
    "completed": "green",
    "pruned": "yellow",
    "stopped": "yellow",
    "diverged": "bold red",
    "failed": "bold red",
    "ending": "yellow",
    "done": "green",
    "gone": "bold red",
    "unknown": "dim",
}
_ARROWS = {"maximize": "↑", "minimize": "↓"}
_SPARK = 12
_UNLIMITED = 10_000
_MIN_SETTING = 8
_BEFORE_SETTINGS = 4
_MAX_WARNINGS = 3
_PAGE_WIDTH = 110
_PAGE = '<pre style="line-height: 1.3; white-space: pre; overflow-x: auto">{code}</pre>'
_FIXED_LINES = 14  # header, titles, headings of two lines, legend, blank lines between the parts, and the line of the cursor


@dataclass(frozen=True)
class _Column:
    """A column with the text of all its rows. Those with a priority may be left out on a narrow terminal, the highest first."""

    title: str
    cells: Sequence[Text]
    right: bool = True
    priority: int = 0

    @property
    def width(self) -> int:
        """Characters that it takes, at least."""
        return max(cell_len(line) for line in [*self.title.split("\n"), *(cell.plain for cell in self.cells)])


def render(picture: Picture, console: Console, *, height: int | None = None, all_warnings: bool = False) -> RenderableType:
    """The whole picture.

    Args:
        picture: The study.
        console: Where it is shown; its width is used.
        height: Lines that there are; None: as many as it takes.
        all_warnings: Show all of them in full, whatever the height.
    """
    front, problems = picture.front, [*picture.warnings, *failures(picture.trials)]
    rows = _room(len(front), len(problems), height)
    parts: list[RenderableType] = [*_header(picture, console.width)]
    if front:
        parts += [Text(), *_front(picture, front, rows[0], console.width)]
    shown = visible(picture.trials, rows[1])
    if shown:
        parts += [Text(), *_trials(picture, shown, console.width)]
    if problems:
        parts += [Text(), *_warnings(problems, None if height is None or all_warnings else _MAX_WARNINGS, console.width)]
    return Group(*parts)


def as_html(picture: Picture, width: int = _PAGE_WIDTH) -> str:
    """The whole picture for a notebook."""
    console = Console(record=True, width=width, file=io.StringIO(), force_jupyter=False)
    console.print(render(picture, console))
    return console.export_html(inline_styles=True, code_format=_PAGE)


def _room(front: int, problems: int, height: int | None) -> tuple[int, int]:
    """Rows for the front and for the trials."""
    if height is None:
        return _UNLIMITED, _UNLIMITED
    rest = height - _FIXED_LINES - min(_MAX_WARNINGS + 1, problems)
    of_front = min(front, max(1, rest // 3))
    return of_front, max(1, rest - of_front)


def _header(picture: Picture, width: int) -> Iterable[RenderableType]:
    rest = f", {left(picture.time_left_s)}" if picture.is_live else ""
    title = Text.assemble(
        (picture.study, "bold"),
        "  ",
        (picture.state, STYLES.get(picture.state, "")),
        f"  {text.duration(picture.elapsed_s)}{rest}",
    )
    if picture.detail:
        title.append(f"  {picture.detail}", STYLES.get(picture.state, ""))
    bar = Table.grid(padding=(0, 1))
    share = Text(f"{100 * picture.progress:.0f} %")
    style = STYLES.get(picture.state, "cyan")
    bar.add_row(
        ProgressBar(total=1.0, completed=picture.progress, width=min(60, max(10, width - 6)), complete_style=style, finished_style=style),
        share,
    )
    return title, bar, Text(counts(picture), no_wrap=True, overflow="ellipsis")


def left(seconds: float | None) -> str:
    """How long a study still takes."""
    return "time left unknown" if seconds is None else f"about {text.duration(seconds)} left"


def counts(picture: Picture) -> str:
    """How many trials are done, and how; how many run and wait, and may go on."""
    ended = [f"{number} {state}" for state in DONE if (number := picture.count(state))]
    halted = [f"{number} {state}" for state in (Status.STOPPED, INTERRUPTED) if (number := picture.count(state))]
    how = f" ({', '.join(ended)})" if ended else ""
    if picture.is_live:
        more = [f"{picture.running} running", f"{picture.queued} queued"]
    else:
        more = [f"{picture.queued} not begun"] if picture.queued else []
    return " · ".join([f"{picture.done} of {picture.total} done{how}", *halted, *more])


def visible(trials: Sequence[TrialLine], rows: int) -> list[TrialLine]:
    """The trials that fit: those that run, then those that wait, then the latest that ended; in their order."""
    order = sorted(range(len(trials)), key=lambda place: (trials[place].is_over, trials[place].state == WAITING, -place))
    return [trials[place] for place in sorted(order[:rows])]


def failures(trials: Sequence[TrialLine]) -> list[str]:
    """What went wrong, each reason once, with the trial that had it first."""
    found: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        if trial.state in TROUBLE:
            found.setdefault((trial.state, trial.reason), []).append(trial.name)
    more = {key: f" (and {len(names) - 1} more)" if len(names) > 1 else "" for key, names in found.items()}
    return [f"{names[0]}{more[state, reason]} {state}: {reason}" for (state, reason), names in found.items()]


def _front(picture: Picture, front: Sequence[TrialLine], rows: int, width: int) -> Iterable[RenderableType]:
    shown, best = front[:rows], picture.best
    of = f", {len(shown)} of {len(front)}" if len(shown) < len(front) else ""
    yield Text(f"Pareto front, values at budget{of}", style="bold")
    marks = [Text("◆" if best is not None and trial.name == best.name else " ") for trial in shown]
    fixed = [_Column("", marks), _names(shown)]
    values = [
        _Column(f"{objective.metric}\n{_ARROWS[objective.direction]}", [Text(value(objective, trial, place)) for trial in shown])
        for place, objective in enumerate(picture.objectives)
    ]
    yield _fit(fixed, shown, values, width)
    if best is not None and len(picture.objectives) > 1 and best in shown:
        yield Text("◆ best compromise between the objectives", style="dim")


def value(objective: Objective, trial: TrialLine, place: int) -> str:
    """An objective of a completed trial, in its unit."""
    assert trial.values is not None
    write: Callable[[float | None], str] = {
        "mean_active": text.quantity,
        "mean_active_fraction": text.percent,
        "flops": text.quantity,
        "worker_s": text.seconds,
        "train_s": text.seconds,
    }.get(objective.metric, text.score)
    return write(trial.values[place])


def _trials(picture: Picture, shown: Sequence[TrialLine], width: int) -> Iterable[RenderableType]:
    of = f", {len(shown)} of {len(picture.trials)}" if len(shown) < len(picture.trials) else ""
    yield Text(f"Trials{of}", style="bold")
    several = any(trial.seeds > 1 for trial in shown)
    seeds = _Column("seeds\ndone", [Text(f"{trial.seeds_done}/{trial.seeds}") for trial in shown])
    rest = [
        _Column("status", [Text(trial.state, STYLES[trial.state]) for trial in shown], right=False),
        *([seeds] if several else []),
        _Column("step", [Text(f"{trial.step}/{trial.steps}") for trial in shown], priority=1),
        _Column("active\nover the steps", [_spark(trial) for trial in shown], right=False),
        _Column("active\nnow", [Text(text.percent(trial.active[-1][1] if trial.active else None)) for trial in shown], priority=2),
        _Column(f"last\n{picture.metric}", [Text(text.score(trial.last)) for trial in shown]),
        _Column(f"best\n{picture.metric}", [Text(text.score(trial.best)) for trial in shown], priority=5),
        _Column("time", [Text(text.clock(trial.elapsed_s) if trial.elapsed_s else "") for trial in shown], priority=4),
    ]
    yield _fit([_names(shown)], shown, rest, width)


def _names(shown: Sequence[TrialLine]) -> _Column:
    return _Column("trial", [Text(trial.name) for trial in shown], right=False)


def _spark(trial: TrialLine) -> Text:
    return Text(text.sparkline(trial.active, trial.steps, _SPARK), "dim" if trial.is_over else STYLES[trial.state])


def _settings(shown: Sequence[TrialLine]) -> list[_Column]:
    """One column per searched field."""
    labels = text.short_names(dict.fromkeys(key for trial in shown for key in trial.params))
    return [
        _Column(
            label.replace(".", "\n."),
            [Text(text.scalar(trial.params[key]) if key in trial.params else "") for trial in shown],
        )
        for key, label in labels.items()
    ]


def setting(trial: TrialLine) -> str:
    """What is searched, in one line, such as ``threshold=-0.51 every=8``."""
    labels = text.short_names(trial.params)
    return " ".join(f"{labels[key]}={text.scalar(given).replace(text.MINUS, '-')}" for key, given in trial.params.items())


def _fit(fixed: Sequence[_Column], shown: Sequence[TrialLine], rest: Sequence[_Column], width: int) -> RenderableType:
    """All columns for which there is room: without those that matter least, then with the settings in one column that is cut."""
    settings, columns, joined = _settings(shown), list(rest), False
    while True:
        room = width - _needs([*fixed, *columns]) - 1
        if not joined and _needs(settings) <= room:
            return _table([*fixed, *settings, *columns])
        if joined and room >= _MIN_SETTING:
            return _table([*fixed, _joined(shown, room), *columns])
        least = max(columns, key=lambda column: column.priority)
        if not joined and least.priority < _BEFORE_SETTINGS:
            joined = True
        elif least.priority:
            columns.remove(least)
        else:
            return _table([*fixed, *columns])


def _joined(shown: Sequence[TrialLine], room: int) -> _Column:
    cells = [Text(setting(trial)) for trial in shown]
    for cell in cells:
        cell.truncate(room, overflow="ellipsis")
    return _Column("setting", cells, right=False)


def _needs(columns: Sequence[_Column]) -> int:
    return sum(column.width + 1 for column in columns) - 1


def _table(columns: Sequence[_Column]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for column in columns:
        made.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            vertical="bottom",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*row)
    return made


def _warnings(problems: Sequence[str], most: int | None, width: int) -> Iterable[RenderableType]:
    """The latest warnings, each cut to two lines where room is scarce."""
    shown = problems if most is None else problems[-most:]
    if len(shown) < len(problems):
        yield Text(f"! {len(problems) - len(shown)} earlier warnings", "yellow")
    for problem in shown:
        line = Text(f"! {problem}", "yellow")
        if most is not None:
            line.truncate(width, overflow="ellipsis")
        yield line
