"""How numbers and names are written for people. Every function takes None for a value that is not known and writes a dash."""

import json
from collections.abc import Iterable
from typing import Any

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_METRICS = {"f1": "F1", "iou": "IoU"}
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
