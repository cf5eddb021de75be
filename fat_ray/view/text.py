"""How numbers and names are written for people. Every function takes None for a value that is not known and writes a dash."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_METRICS = {"f1": "F1", "iou": "IoU"}
_BARS = "▁▂▃▄▅▆▇█"
_KINDS = {"none": "full fine-tuning", "random_matched": "random matched", "single": "the single run"}


def score(value: float | None) -> str:
    """A metric with three decimals."""
    return DASH if value is None else f"{value:.3f}".replace("-", MINUS)


def difference(value: float | None) -> str:
    """A difference of metrics with its sign and three decimals."""
    return DASH if value is None else f"{value:+.3f}".replace("-", MINUS)


def percent(value: float | None) -> str:
    """A fraction as a whole percentage, with one decimal below ten percent."""
    if value is None:
        return DASH
    return f"{100 * value:.{0 if value >= 0.0995 or value == 0 else 1}f}\N{NO-BREAK SPACE}%"


def ratio(value: float | None) -> str:
    """A ratio with two decimals and a multiplication sign."""
    return DASH if value is None else f"{value:.2f}\N{MULTIPLICATION SIGN}"


def quantity(value: float | None) -> str:
    """A large number with three significant digits and a letter: k, M, G, T, P, E."""
    if value is None:
        return DASH
    for letter in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g}{letter}" if letter else f"{value:.4g}"
        value /= 1000
    return f"{value:.3g}E"


def seconds(value: float | None) -> str:
    """A duration in the units that a person would use."""
    if value is None:
        return DASH
    if value < 99.5:
        return f"{value:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes}\N{NO-BREAK SPACE}min {rest:02d}\N{NO-BREAK SPACE}s"
    return f"{minutes // 60}\N{NO-BREAK SPACE}h {minutes % 60:02d}\N{NO-BREAK SPACE}min"


def duration(value: float | None) -> str:
    """A time to wait for, in whole seconds, minutes or hours: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if value is None:
        return DASH
    whole = max(0, round(value))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(value: float) -> str:
    """A time that runs, as a stop-watch shows it: ``0:42``, ``3:05``, ``2:07:00``."""
    minutes, seconds = divmod(max(0, round(value)), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def sparkline(points: Sequence[tuple[int, float]], steps: int, width: int) -> str:
    """A curve of shares in few characters, each of which stands for an equal part of the steps; empty where nothing is known yet.

    Args:
        points: (step, share between 0 and 1), the steps from 0 on and rising; each share holds until the next step.
        steps: Steps that the whole width stands for.
        width: Characters.
    """
    cells, at, level = [], 0, None
    reached = points[-1][0] if points else -1
    for cell in range(width):
        end = (cell + 1) * steps / width
        while at < len(points) and points[at][0] < end:
            level, at = points[at][1], at + 1
        cells.append(" " if level is None or cell * steps / width > reached else _BARS[min(7, max(0, int(8 * level - 1e-9)))])
    return "".join(cells)


def scalar(value: Any) -> str:
    """A setting: floats with three significant digits, everything else as in YAML."""
    if isinstance(value, float):
        return f"{value:.3g}".replace("-", MINUS)
    return value if isinstance(value, str) else json.dumps(value)


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 trial, 2 trials."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listing(words: Iterable[str]) -> str:
    """Words as in a sentence: a, b and c."""
    *first, last = list(words)
    return f"{', '.join(first)} and {last}" if first else last


def metric_name(metric: str) -> str:
    """A metric as its field writes it."""
    return _METRICS.get(metric, metric.replace("_", " "))


def setting_name(setting: str) -> str:
    """A setting as prose calls it: baselines by what they do."""
    return _KINDS.get(setting, setting)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest dotted ending of each key that no other key shares: threshold, fisher.every, freeze.every."""
    paths = {key: key.split(".") for key in keys}
    endings = {key: [".".join(path[-n:]) for n in range(1, len(path) + 1)] for key, path in paths.items()}
    every = [ending for own in endings.values() for ending in own]
    return {key: next((ending for ending in own if every.count(ending) == 1), key) for key, own in endings.items()}
