"""What is done to images: random augmentation of training images, and the fixed shifts of the zero-shot proxy.

Both depend on a seed alone, never on the process, the order of calls, or torch's global generator.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fat_ray.spec.task import ShiftSpec

Disturbance = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Maps an image (3, H, W) in [0, 1], its mask (1, H, W) and a seed to a disturbed image and mask."""

_BRIGHTNESS = 0.2  # largest relative change


def augment(image_chw: Tensor, mask_1hw: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Flips, turns by quarters, and brightens or darkens by up to a fifth."""
    random = np.random.default_rng(seed)
    flipped, turns = random.integers(2), int(random.integers(4))  # these eight are all symmetries of the square
    if flipped:
        image_chw, mask_1hw = image_chw.flip(-1), mask_1hw.flip(-1)
    image_chw, mask_1hw = image_chw.rot90(turns, (-2, -1)), mask_1hw.rot90(turns, (-2, -1))
    return (image_chw * random.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS)).clamp(0, 1), mask_1hw


def shifted(spec: ShiftSpec) -> Disturbance:
    """The shifts of the zero-shot proxy: lighting and contrast of the scene, then blur of the lens, then noise of the sensor."""

    def shift(image_chw: Tensor, mask_1hw: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(seed)
        image_chw = image_chw * _illumination(image_chw.shape[-2:], spec.lighting, random.uniform(0, 2 * math.pi))
        mean = image_chw.mean()
        image_chw = mean + spec.contrast * (image_chw - mean)
        image_chw = _blur(image_chw, spec.blur)
        noise = torch.from_numpy(random.standard_normal(image_chw.shape, dtype=np.float32))
        return (image_chw + spec.noise * noise).clamp(0, 1), mask_1hw

    return shift


def _illumination(size: torch.Size, strength: float, angle: float) -> Tensor:
    """A factor (H, W) that changes linearly in the direction of `angle` (radians), with mean 1, between 1 ± strength."""
    height, width = size
    y, x = torch.linspace(-1, 1, height).unsqueeze(1), torch.linspace(-1, 1, width).unsqueeze(0)
    ramp = (math.sin(angle) * y + math.cos(angle) * x) / (abs(math.sin(angle)) + abs(math.cos(angle)))
    return 1 + strength * ramp


def _blur(image_chw: Tensor, sigma: float) -> Tensor:
    """A separable Gaussian blur, cut at three standard deviations; the border pixel is repeated outside the image."""
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return image_chw
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)
    padded = functional.pad(image_chw.unsqueeze(0), (radius,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3).squeeze(0)
