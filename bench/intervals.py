"""How often the intervals of `compare` hold the truth, by number of seeds: `python -m bench.intervals [--json]`. See bench/README.md."""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import t

from bench.tables import markdown
from fat_ray.analysis.statistics import CONFIDENCE, EXACT_SEEDS, Floats, intervals, sign_flip

Row = dict[str, Any]
SEEDS = (3, 4, 5, 6, 8, 10, 15, 20)


def normal(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Seeds that scatter evenly."""
    return rng.normal(size=size)


def skewed(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Seeds of which a few are much worse: a lognormal turned round, with mean 0."""
    return np.exp(0.5) - np.exp(rng.normal(size=size))


def student(values: Floats) -> Floats:
    """The interval that assumes a normal distribution, to compare with."""
    seeds = values.shape[1]
    half = t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * values.std(axis=1, ddof=1) / np.sqrt(seeds)
    return np.stack([values.mean(axis=1) - half, values.mean(axis=1) + half], axis=1)


def held(ends: Floats) -> float:
    """Share of intervals that hold the true mean, 0."""
    return float(((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean())


def run(draws: int) -> list[Row]:
    """One row per distribution and number of seeds."""
    rows = []
    scatters: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {"normal": normal, "skewed": skewed}
    for name, scatter in scatters.items():
        for seeds in SEEDS:
            values = scatter(np.random.default_rng(seeds), (draws, seeds))
            row: Row = {"seeds": name, "n": seeds, "bca_holds": held(intervals(values)), "student_holds": held(student(values))}
            if scatter is normal and seeds <= EXACT_SEEDS:  # skewed differences are none of exchangeable settings
                row["test_rejects"] = float((sign_flip(values[: draws // 4]) <= 1 - CONFIDENCE).mean())
            rows.append(row)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.intervals", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--draws", type=int, default=4000, help="made-up settings of each kind")
    given = parser.parse_args()
    rows = run(given.draws)
    print(json.dumps(rows, indent=2) if given.json else markdown(rows))


if __name__ == "__main__":
    main()
