"""What each way to compare two Fisher states reports when nothing but sampling noise moved, over the size of the group.

A group is a block of rows x columns whose factors are lognormal levels; a collection sees each level times the mean of 20 squares per
half. `python -m bench.null [--json] [--repeats N]` prints the means over independent groups with their standard errors.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fat_ray.fisher.drift import automatic_bins, js_distance

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]
"""(row factor, column factor)."""

Halves = tuple[Pair, Pair]
"""The factors of half A and of half B."""

SIZES = ((8, 1), (16, 3), (8, 8), (32, 32), (64, 256), (256, 1024), (1024, 1024))
COLLECTIONS = 6
SAMPLES = 20
"""Squares in the mean of one half."""
CHANGES = {"none": (0.0, 1.0), "S times 10": (0.0, 10.0), "drift 0.3": (0.3, 1.0), "drift 1": (1.0, 1.0)}
"""What happens once, before the last collection: standard deviation by which each log factor moves, and the factor on S."""
GAMMA, RELEASED_GAMMA, ELEMENTWISE_DECAY = 0.8, 0.2, 0.9
GRADIENT_SCALE = 1e-4
"""Scale of S in the released code, whose gradients are those of a mean loss."""


@dataclass(frozen=True)
class Row:
    """One cell: mean and standard error over repeats.

    Attributes:
        scheme: Which comparison.
        unit: ``distance`` (0 to 0.83) or ``divergence`` (its square, less the null).
        elements: Size of the group.
        change: One of CHANGES.
        mean: Of the last collection's value.
        error: Its standard error.
    """

    scheme: str
    unit: str
    elements: int
    change: str
    mean: float
    error: float


def collections(rng: np.random.Generator, rows: int, columns: int, drift: float, scale: float) -> Iterator[Halves]:
    """Noisy factors of consecutive windows; the levels move by `drift` and `scale` before the last one."""
    levels = [rng.lognormal(size=rows), rng.lognormal(size=columns)]
    for window in range(COLLECTIONS):
        if window == COLLECTIONS - 1:
            levels = [level * np.exp(drift * rng.normal(size=level.size)) for level in levels]
            levels[0] *= scale
        a, b = ([level * rng.gamma(SAMPLES, 1 / SAMPLES, level.size) for level in levels] for _ in range(2))
        yield (a[0], a[1]), (b[0], b[1])


def smoothed(windows: list[Halves], gamma: float) -> list[Halves]:
    """Bias-corrected running averages of each factor of each half; γ = 0: the windows themselves."""
    total = [np.zeros_like(factor) for half in windows[0] for factor in half]
    states: list[Halves] = []
    for count, window in enumerate(windows, 1):
        total = [gamma * t + (1 - gamma) * f for t, f in zip(total, (f for half in window for f in half), strict=True)]
        a_row, a_column, b_row, b_column = (t / (1 - gamma**count) for t in total)
        states.append(((a_row, a_column), (b_row, b_column)))
    return states


def values(*pairs: Pair) -> NDArray[np.float32]:
    """Fisher values of the group under the mean of some factors."""
    row, column = (np.mean(factors, axis=0).astype(np.float32) for factors in zip(*pairs, strict=True))
    return np.outer(row, column).ravel()


def divergence(reference: tuple[Pair, Pair], current: tuple[Pair, Pair], *, bins: int | None = 64) -> float:
    """Centred JS divergence between the means of two pairs of halves; without a number of bins, it follows the size."""
    states = values(*reference), values(*current)
    return js_distance(*states, centre="median", bins=automatic_bins(states[0].size) if bins is None else bins) ** 2


def released(windows: list[Halves]) -> float:
    """Against the element-wise average; the running averages restart at one, so S is nearly constant."""
    states = []
    for (a_row, a_column), (b_row, b_column) in windows:
        row, column = GRADIENT_SCALE * (a_row + b_row) / 2, (a_column + b_column) / 2
        states.append(values((RELEASED_GAMMA + (1 - RELEASED_GAMMA) * row, RELEASED_GAMMA + (1 - RELEASED_GAMMA) * column)))
    return against_average(states)


def released_without_restart(windows: list[Halves]) -> float:
    """The same comparison with running averages as published: correct averages alone do not cure the trend."""
    return against_average([values(*state) for state in smoothed(windows, GAMMA)])


def against_average(states: list[NDArray[np.float32]]) -> float:
    """Distance of the last state from the element-wise average of those before."""
    average = states[0]
    for state in states[1:-1]:
        average = ELEMENTWISE_DECAY * average + (1 - ELEMENTWISE_DECAY) * state
    return js_distance(average, states[-1])


def paper(windows: list[Halves]) -> float:
    """Against the previous state, uncentred, with running averages."""
    previous, current = smoothed(windows, GAMMA)[-2:]
    return js_distance(values(*previous), values(*current))


def swapped(gamma: float, *, crossed: bool, bins: int | None = 64, one_scale: bool = False) -> Callable[[list[Halves]], float]:
    """Drift plus noise, less the noise of a swap.

    Args:
        gamma: Of the running averages; 0: single windows.
        crossed: The null exchanges the windows of one half; else half A of both windows meets half B of both.
        bins: None: by group size.
        one_scale: Whether the previous window is brought to the scale of the current one before they are mixed.
    """

    def corrected(windows: list[Halves]) -> float:
        previous, current = smoothed(windows, gamma)[-2:]
        found = divergence(previous, current, bins=bins)
        (a_p, b_p), (a_c, b_c) = at_scale_of(current, previous) if one_scale else previous, current
        return found - (divergence((a_c, b_p), (a_p, b_c), bins=bins) if crossed else divergence((a_p, a_c), (b_p, b_c), bins=bins))

    return corrected


def at_scale_of(current: Halves, previous: Halves) -> Halves:
    """The previous factors, each times a constant that gives it the mean of the current one."""
    (a_row, a_column), (b_row, b_column) = previous
    row, column = ((current[0][k] + current[1][k]).mean() / (previous[0][k] + previous[1][k]).mean() for k in (0, 1))
    return (row * a_row, column * a_column), (row * b_row, column * b_column)


SCHEMES: dict[str, tuple[str, Callable[[list[Halves]], float]]] = {
    "released": ("distance", released),
    "released, decayed averages": ("distance", released_without_restart),
    "paper": ("distance", paper),
    "A/B swap, single windows": ("divergence", swapped(0.0, crossed=False)),
    "A/B swap, running averages": ("divergence", swapped(GAMMA, crossed=False)),
    "crossed swap, single windows": ("divergence", swapped(0.0, crossed=True)),
    "crossed swap, running averages": ("divergence", swapped(GAMMA, crossed=True)),
    "crossed swap, running averages, one scale": ("divergence", swapped(GAMMA, crossed=True, one_scale=True)),
    "the same with automatic bins": ("divergence", swapped(GAMMA, crossed=True, one_scale=True, bins=None)),
}


def measure(rows: int, columns: int, change: str, repeats: int) -> list[Row]:
    """All schemes on the same simulated groups."""
    rng = np.random.default_rng((rows, columns, list(CHANGES).index(change)))
    found: dict[str, list[float]] = {scheme: [] for scheme in SCHEMES}
    for _ in range(repeats):
        windows = list(collections(rng, rows, columns, *CHANGES[change]))
        for scheme, (_, compare) in SCHEMES.items():
            found[scheme].append(compare(windows))
    return [
        Row(scheme, SCHEMES[scheme][0], rows * columns, change, float(np.mean(v)), float(np.std(v, ddof=1) / np.sqrt(len(v))))
        for scheme, v in found.items()
    ]


def table(rows: list[Row]) -> str:
    """Markdown: one line per scheme and drift, one column per size."""
    sizes = sorted({row.elements for row in rows})
    lines = ["| change | comparison | unit | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|" + "---|" * (3 + len(sizes))]
    for change in CHANGES:
        for scheme, (unit, _) in SCHEMES.items():
            cells = {row.elements: row for row in rows if row.scheme == scheme and row.change == change}
            shown = [f"{cells[size].mean:.4f} ± {cells[size].error:.4f}" for size in sizes]
            lines.append(f"| {change} | {scheme} | {unit} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, or its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=300, help="groups per cell; fewer for large groups")
    arguments = parser.parse_args()
    repeats = {size: max(8, min(arguments.repeats, 1024 * arguments.repeats // (size[0] * size[1]))) for size in SIZES}
    rows = [row for change in CHANGES for size in SIZES for row in measure(*size, change, repeats[size])]
    print(json.dumps([asdict(row) for row in rows], indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
