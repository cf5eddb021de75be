"""The crack segmentation network: EfficientNet-Lite0 under a SegFormer-style all-MLP head."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.tasks import lite0

_CRACK_PRIOR = 0.05  # the share of crack pixels that a fresh head predicts
_FIRST_MAP = 1  # SegFormer fuses at stride 4; at stride 2 a step takes half as long again


class AllMLPHead(nn.Module):
    """Fuses feature maps of several resolutions pixel by pixel (Xie et al., "SegFormer", arXiv 2105.15203, section 3.2).

    Args:
        channels: Channels of the feature maps, finest first.
        width: Channels of the head.
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.fuse = nn.Conv2d(len(channels) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, 1, 1)
        # Without the prior (Lin et al., "Focal Loss", arXiv 1708.02002, 3.3) dozens of steps go into unlearning "half is crack".
        assert self.classify.bias is not None
        nn.init.constant_(self.classify.bias, math.log(_CRACK_PRIOR / (1 - _CRACK_PRIOR)))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps feature maps to logits (B, 1, H, W) at the resolution of the first."""
        size = features[0].shape[-2:]
        projected = [
            functional.interpolate(project(feature), size, mode="bilinear", align_corners=False)
            for project, feature in zip(self.projections, features, strict=True)
        ]
        fused = functional.relu(self.norm(self.fuse(torch.cat(projected, dim=1))))
        logits: Tensor = self.classify(fused)
        return logits


class CrackSegmenter(nn.Module):
    """Logits of "this pixel is crack" for RGB images.

    Args:
        head_width: Channels of the head.
        batchnorm_momentum: Momentum of the encoder's running statistics.
    """

    def __init__(self, head_width: int, batchnorm_momentum: float) -> None:
        super().__init__()
        self.encoder = lite0.Lite0Encoder(batchnorm_momentum)
        self.head = AllMLPHead(lite0.CHANNELS[_FIRST_MAP:], head_width)

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Maps images (B, 3, H, W) with values in [0, 1] to logits (B, 1, H, W)."""
        # Channels last makes a training step on CPU 1.4 times faster; the weights can stay as they are.
        x = ((images_bchw - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
        logits = self.head(self.encoder(x)[_FIRST_MAP:])
        return functional.interpolate(logits, images_bchw.shape[-2:], mode="bilinear", align_corners=False)
