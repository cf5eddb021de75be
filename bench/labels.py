"""Do drift scores see the labels? A small network learns which patches hold a crack: from true labels, and from shuffled ones.

Runs come in pairs with one start and one order of patches; only the labels differ. Nothing freezes, and every preset measures the same
runs. A score that reacts to what is learnt moves the same way in every pair.
`python -m bench.labels [--json] [--seeds N] [--steps N]`, about a minute with the defaults.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

import fat_ray.tasks
from fat_ray import rules
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, build_formulas
from fat_ray.spec.run import RunSpec
from fat_ray.tasks.crack.source import read_pairs

Floats = NDArray[np.float64]
PRESETS = ("corrected", "paper", "released")
IMAGE_SIZE, PATCH, BATCH, COLLECT_EVERY, LR = 128, 32, 32, 4, 2e-3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """How well one preset's scores tell true from shuffled labels.

    Attributes:
        preset: Which.
        groups: Number of groups with a score.
        consistency: Mean over groups of |2·P - 1|, where P is the share of pairs in which true labels score higher: 1 always the same
            way, near 0 either way.
        by_chance: The same with the kinds exchanged in random pairs: mean over all exchanges.
        p_value: Share of the exchanges that are at least as consistent.
        told: Share of pairs whose order is told by the mean difference of all other pairs, differences standardised per group.
        across: Rank correlation over groups between the mean scores under true and under shuffled labels, from different pairs.
        within: The same within one kind: what a score that ignores labels would reach.
    """

    preset: str
    groups: int
    consistency: float
    by_chance: float
    p_value: float
    told: float
    across: float
    within: float


def network() -> nn.Module:
    """Patches to one logit: convolutions, norms, a depthwise layer and two linear ones."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 5, padding=2, groups=32), nn.Conv2d(32, 48, 1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48 * 16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1)),
    )


def patches() -> tuple[Tensor, Tensor]:
    """All patches of the embedded images with whether they hold a crack; as many with as without."""
    pairs = read_pairs(Path(fat_ray.tasks.__path__[0], "data", "uav_256.parquet"), IMAGE_SIZE)
    images, masks = (cut(values.float()) for values in (pairs.images / 255, pairs.masks))
    cracked = masks.flatten(1).any(1)
    kept = min(int(cracked.sum()), int((~cracked).sum()))
    chosen = torch.cat([torch.nonzero(kind).flatten()[:: max(1, int(kind.sum()) // kept)][:kept] for kind in (cracked, ~cracked)])
    return images[chosen], cracked[chosen].float()


def cut(values: Tensor) -> Tensor:
    """(N, C, size, size) to (N·k², C, PATCH, PATCH)."""
    tiles = values.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, values.shape[1], PATCH, PATCH)


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


def trained_scores(images: Tensor, labels: Tensor, seed: int, steps: int, *, shuffled: bool) -> tuple[dict[str, Floats], float]:
    """Trains one network; the scores of each preset, and the mean loss of the last quarter."""
    rng = np.random.default_rng(seed)
    order = [rng.choice(len(images), BATCH, replace=False) for _ in range(steps)]
    if shuffled:
        labels = labels[torch.from_numpy(rng.permutation(len(labels)))]
    torch.manual_seed(seed)
    model = network().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    probes = {preset: Probe(preset, model) for preset in PRESETS}
    losses = []
    for step, chosen in enumerate(order):
        watching = probes.values() if step % COLLECT_EVERY == 0 else ()
        for probe in watching:
            probe.arm()
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(images[chosen]).squeeze(1), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        for probe in watching:
            probe.update()
        optimizer.step()
        losses.append(float(loss.detach()))
    return {preset: probe.scores() for preset, probe in probes.items()}, float(np.mean(losses[-steps // 4 :]))


def consistency(differences: Floats) -> float:
    """Mean over groups of |2·P - 1|; differences are (pairs, groups), ties count half."""
    return float(np.abs(np.sign(differences).mean(0)).mean())


def told(differences: Floats) -> float:
    """Leave-one-out: does a pair differ in the direction of the mean of the others?"""
    hits = []
    for index in range(len(differences)):
        others = np.delete(differences, index, axis=0)
        weights = others.mean(0) / (others.var(0) + 1e-24)
        hits.append(float(differences[index] @ weights > 0))
    return float(np.mean(hits))


def compared(preset: str, true: Floats, shuffled: Floats) -> Row:
    """The row of one preset; arrays are (pairs, groups)."""
    moving = np.isfinite(true).all(0) & np.isfinite(shuffled).all(0)
    true, shuffled = true[:, moving], shuffled[:, moving]
    differences = true - shuffled
    signs = np.array([[1 - 2 * (code >> bit & 1) for bit in range(len(true))] for code in range(2 ** (len(true) - 1))])
    chance = np.array([consistency(differences * sign[:, None]) for sign in signs])
    first, second = slice(None, len(true) // 2), slice(len(true) // 2, None)

    def agreement(one: Floats, other: Floats) -> float:
        return float(np.mean([spearmanr(one[a].mean(0), other[b].mean(0))[0] for a, b in ((first, second), (second, first))]))

    return Row(
        preset=preset,
        groups=int(moving.sum()),
        consistency=consistency(differences),
        by_chance=float(chance.mean()),
        p_value=float((chance >= chance[0]).mean()),
        told=told(differences),
        across=agreement(true, shuffled),
        within=(agreement(true, true) + agreement(shuffled, shuffled)) / 2,
    )


def measure(seeds: int, steps: int) -> tuple[list[Row], dict[str, float]]:
    """Trains `seeds` pairs; the rows, and the mean loss of each kind at the end."""
    images, labels = patches()
    runs = {kind: [trained_scores(images, labels, seed, steps, shuffled=kind) for seed in range(seeds)] for kind in (False, True)}
    rows = [compared(preset, *(np.stack([scores[preset] for scores, _ in runs[kind]]) for kind in (False, True))) for preset in PRESETS]
    losses = {name: float(np.mean([loss for _, loss in runs[kind]])) for name, kind in (("true", False), ("shuffled", True))}
    return rows, losses


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| preset | groups | consistency | by chance | p | pairs told | rank correlation true/shuffled | within one kind |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        values = (row.consistency, row.by_chance, row.p_value, row.told, row.across, row.within)
        lines.append(f"| {row.preset} | {row.groups} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, or its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=10, help="pairs of runs")
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    rows, losses = measure(arguments.seeds, arguments.steps)
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "losses": losses}, indent=1))
    else:
        print(table(rows))
        print(f"\nmean loss of the last quarter: {losses['true']:.3f} with true labels, {losses['shuffled']:.3f} with shuffled ones")


if __name__ == "__main__":
    main()
