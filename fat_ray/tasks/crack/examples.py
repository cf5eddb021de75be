"""A split of a crack data set as examples."""

import zlib
from collections.abc import Sequence

import torch

from fat_ray.tasks.base import Batch
from fat_ray.tasks.crack.disturb import Disturbance
from fat_ray.tasks.crack.source import Pairs


class CrackExamples:
    """Some pairs of a data set. A batch is (images (B, 3, H, W) in [0, 1], masks (B, 1, H, W) of zeros and ones), both float32.

    Args:
        pairs: The whole data set; it is shared, not copied.
        indices: Positions in it of this set's examples.
        augmentation: Done to an example that is read with a seed; None: seeds are ignored.
        shift: Done to an example that is read without a seed, with a seed of its id's own; None: examples are read as they are.
    """

    def __init__(
        self, pairs: Pairs, indices: Sequence[int], *, augmentation: Disturbance | None = None, shift: Disturbance | None = None
    ) -> None:
        self._pairs = pairs
        self._indices = list(indices)
        self._augmentation = augmentation
        self._shift = shift

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Reads examples on the CPU; see `fat_ray.tasks.base.ExampleSet`."""
        chosen = [self._indices[index] for index in indices]
        images, masks = self._pairs.images[chosen].float() / 255, self._pairs.masks[chosen].float()
        if seeds is not None:
            disturbance = self._augmentation
        else:
            disturbance, seeds = self._shift, [zlib.crc32(self._pairs.ids[index].encode()) for index in chosen]
        if disturbance is None:
            return images, masks
        disturbed = [disturbance(*example) for example in zip(images, masks, seeds, strict=True)]
        return torch.stack([image for image, _ in disturbed]), torch.stack([mask for _, mask in disturbed])
