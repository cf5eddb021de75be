"""In which order examples are seen: a function of seed and step alone, so that every policy and world size sees the same batches."""

from dataclasses import dataclass

import numpy as np
import torch

from fat_ray.tasks.base import Batch, ExampleSet


@dataclass(frozen=True)
class TrainingOrder:
    """An endless stream of examples: one seeded permutation of the training split after the other, cut into global batches.

    Attributes:
        examples: The training split.
        global_batch: Examples per step over all ranks.
        seed: Seed of the run.
        rank: This rank.
        world_size: Number of ranks; divides `global_batch`.
    """

    examples: ExampleSet
    global_batch: int
    seed: int
    rank: int
    world_size: int

    def batch(self, step: int) -> Batch:
        """This rank's share of the step's global batch, augmented; ranks take turns through the global batch."""
        first = step * self.global_batch
        positions = range(first + self.rank, first + self.global_batch, self.world_size)
        seeds = [int(np.random.SeedSequence((self.seed, 1, position)).generate_state(1)[0]) for position in positions]
        return self.examples.batch([self._index(position) for position in positions], seeds)

    def repeats(self) -> bool:
        """Whether examples are the same each time that they are read, as a few are that are read with two seeds each."""
        indices = range(min(4, len(self.examples)))
        first, second = (self.examples.batch(indices, [seed + index for index in indices]) for seed in (1, 1001))
        return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.examples))
        return int(np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.examples))[offset])


def learning_rate_factor(name: str, step: int, steps: int, warmup_steps: int, final_fraction: float) -> float:
    """Factor on the peak learning rate at a step: linear warm-up to 1, then the named curve that reaches `final_fraction` at the end.

    Args:
        name: ``cosine``, ``linear`` or ``constant``.
        step: From 0.
        steps: Steps of the whole run.
        warmup_steps: The factor of step s < warmup_steps is (s + 1) / (warmup_steps + 1).
        final_fraction: Factor at the last step; ignored by ``constant``.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if name == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    curve = 0.5 * (1 + np.cos(np.pi * progress)) if name == "cosine" else 1 - progress
    return float(final_fraction + (1 - final_fraction) * curve)
