"""Do drift scores see the labels? The same small network is trained on crack images with their own masks, and with masks of other images.

Nothing freezes; every preset measures the same runs. A score that reacts to what is learnt tells the two kinds of run apart.
`python -m bench.labels [--json] [--seeds N] [--steps N]`, about a minute with the defaults.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

import fat_ray.tasks
from fat_ray import rules
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, build_formulas
from fat_ray.spec.run import RunSpec
from fat_ray.tasks.crack.measures import example_losses
from fat_ray.tasks.crack.source import read_pairs

Floats = NDArray[np.float64]
PRESETS = ("corrected", "paper", "released")
IMAGE_SIZE, BATCH, COLLECT_EVERY, LR = 64, 16, 2, 2e-3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """How well one preset's scores tell true from shuffled labels.

    Attributes:
        preset: Which.
        groups: Number of groups with a score.
        separation: Mean over groups of |2·AUC - 1| between the runs with true and those with shuffled labels: 1 apart, 0 mixed.
        by_chance: The same when the runs are divided at random, labels ignored: mean over divisions.
        p_value: Share of the random divisions that separate at least as well.
        across: Rank correlation over groups between the mean scores under true and under shuffled labels.
        within: The same between two halves of the runs with true labels: what a score that ignores labels would reach.
        told: Share of runs whose kind is told by the nearer class mean of all other runs, scores standardised per group.
    """

    preset: str
    groups: int
    separation: float
    by_chance: float
    p_value: float
    across: float
    within: float
    told: float


def network() -> nn.Module:
    """Images to logits at the same size: convolutions, norms, a depthwise layer and a pointwise head."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 5, padding=2, groups=32), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 1, 1), nn.Upsample(scale_factor=4, mode="bilinear")),
    )


class Probe:
    """One preset's drift of a model that others train."""

    def __init__(self, preset: str, model: nn.Module) -> None:
        spec = RunSpec.model_validate({"preset": preset})
        self._drift, self._model = spec.drift, model
        self._groups = build_groups(model, spec.fisher.groups)
        self._meter = DriftMeter(model, self._groups, spec.fisher, spec.drift)
        self._collector = Collector(model, self._groups, build_formulas(spec.fisher), halves=self._meter.halves)
        self._history = rules.DriftHistory.empty(len(self._groups))

    def arm(self) -> None:
        """Watches the coming forward and backward."""
        self._collector.arm([group.layer for group in self._groups], Share(BATCH))

    def update(self) -> None:
        """Takes what was seen into the scores."""
        active = np.ones(len(self._groups), bool)
        found = self._meter.update(self._collector.take(), self._squared_gradient, active, CPU)
        corrected = self._drift.start == "corrected"
        if not corrected and not self._history.count.any():
            self._history = rules.begin(self._history, active & ~self._meter.dead)
        self._history = rules.observe(self._history, found.distance, found.measured, self._drift.smoothing, corrected=corrected)

    def _squared_gradient(self, name: str) -> Floats:
        gradient = self._model.get_parameter(name).grad
        assert gradient is not None
        squares: Floats = gradient.double().square().numpy()
        return squares

    def scores(self) -> Floats:
        """One per group."""
        return rules.score(self._history, self._drift.score)


def trained_scores(images: Tensor, masks: Tensor, seed: int, steps: int, *, shuffled: bool) -> dict[str, Floats]:
    """Trains one network and returns the scores of each preset."""
    rng = np.random.default_rng(seed)
    order = [rng.choice(len(images), BATCH, replace=False) for _ in range(steps)]
    if shuffled:
        masks = masks[torch.from_numpy(rng.permutation(len(masks)))]
    torch.manual_seed(seed)
    model = network().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    probes = {preset: Probe(preset, model) for preset in PRESETS}
    for step, chosen in enumerate(order):
        collects = step % COLLECT_EVERY == 0
        for probe in probes.values() if collects else ():
            probe.arm()
        optimizer.zero_grad()
        example_losses(model(images[chosen]), masks[chosen], 2.0).mean().backward()  # type: ignore[no-untyped-call]
        for probe in probes.values() if collects else ():
            probe.update()
        optimizer.step()
    return {preset: probe.scores() for preset, probe in probes.items()}


def separation(true: Floats, shuffled: Floats) -> float:
    """Mean over groups of |2·AUC - 1|; arrays are (runs, groups)."""
    ranks = rankdata(np.concatenate([true, shuffled]), axis=0)[: len(true)].sum(0)
    pairs = len(true) * len(shuffled)
    auc = (ranks - len(true) * (len(true) + 1) / 2) / pairs
    return float(np.abs(2 * auc - 1).mean())


def told_apart(true: Floats, shuffled: Floats) -> float:
    """Leave-one-out accuracy of the nearest class mean."""
    runs, kinds = np.concatenate([true, shuffled]), np.repeat([True, False], [len(true), len(shuffled)])
    hits = []
    for index in range(len(runs)):
        rest = np.arange(len(runs)) != index
        spread = runs[rest].std(0) + 1e-12
        near, far = (
            np.square((runs[index] - runs[rest & (kinds == kind)].mean(0)) / spread).sum() for kind in (kinds[index], not kinds[index])
        )
        hits.append(near < far)
    return float(np.mean(hits))


def compared(preset: str, true: Floats, shuffled: Floats) -> Row:
    """The row of one preset; arrays are (runs, groups)."""
    moving = np.isfinite(true).all(0) & np.isfinite(shuffled).all(0)
    true, shuffled = true[:, moving], shuffled[:, moving]
    found, half, rng = separation(true, shuffled), len(true) // 2, np.random.default_rng(0)
    runs = np.concatenate([true, shuffled])
    divisions = [rng.permutation(len(runs)) for _ in range(500)]
    chance = [separation(runs[division[: len(true)]], runs[division[len(true) :]]) for division in divisions]
    return Row(
        preset=preset,
        groups=int(moving.sum()),
        separation=found,
        by_chance=float(np.mean(chance)),
        p_value=float(np.mean(np.array(chance) >= found)),
        across=float(np.mean([spearmanr(true[part].mean(0), shuffled[part].mean(0))[0] for part in (slice(half), slice(half, None))])),
        within=float(np.mean([spearmanr(kind[:half].mean(0), kind[half:].mean(0))[0] for kind in (true, shuffled)])),
        told=told_apart(true, shuffled),
    )


def measure(seeds: int, steps: int) -> list[Row]:
    """Trains `seeds` networks of each kind."""
    data = Path(fat_ray.tasks.__path__[0], "data", "uav_256.parquet")
    pairs = read_pairs(data, IMAGE_SIZE)
    images, masks = pairs.images.float() / 255, pairs.masks.float()
    scores = {kind: [trained_scores(images, masks, seed, steps, shuffled=kind) for seed in range(seeds)] for kind in (False, True)}
    return [compared(preset, *(np.stack([run[preset] for run in scores[kind]]) for kind in (False, True))) for preset in PRESETS]


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| preset | groups | separation | by chance | p | rank correlation true/shuffled | within one kind | runs told |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = (row.separation, row.by_chance, row.p_value, row.across, row.within, row.told)
        lines.append(f"| {row.preset} | {row.groups} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, or its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=8, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    rows = measure(arguments.seeds, arguments.steps)
    print(json.dumps([asdict(row) for row in rows], indent=1) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
