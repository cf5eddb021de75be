"""Networks and batches that the benches measure: ViT-like ones of 5 and 21 million parameters, and the crack segmentation CNN."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.spec.task import CrackSegmentationSpec
from fat_ray.tasks.base import Batch
from fat_ray.tasks.registry import build_task

BATCH = 8
"""Examples per step, the default of `train.global_batch`."""


@dataclass(frozen=True)
class Case:
    """What is trained: the model, one batch, and the loss."""

    name: str
    model: nn.Module
    batch: Batch
    loss: Callable[[nn.Module, Batch], Tensor]

    @property
    def parameters(self) -> int:
        """Number of trainable entries."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        x = x + self.attn(self.norm1(x))
        moved: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return moved


class VisionTransformer(nn.Module):
    """Blocks on patches of 16 x 16 of an image of 224 x 224; Dosovitskiy et al., arXiv 2010.11929, in the widths of DeiT."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.position = nn.Parameter(0.02 * torch.randn(1, 196, width))
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def vision_transformer(name: str, width: int, depth: int = 12) -> Case:
    """A vision transformer on random images of 224 x 224."""
    torch.manual_seed(0)
    batch = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH) % 10
    return Case(name, VisionTransformer(width, depth).train(), batch, lambda model, b: functional.cross_entropy(model(b[0]), b[1]))


def crack_cnn(name: str) -> Case:
    """EfficientNet-Lite0 with its segmentation head on images of 128 x 128, the default task."""
    torch.manual_seed(0)
    task = build_task(CrackSegmentationSpec(pretrained=False))
    return Case(name, task.build_model().train(), task.train_set().batch(list(range(BATCH)), [0] * BATCH), task.loss)


CASES: Mapping[str, Callable[[str], Case]] = {
    "vit-21m": lambda name: vision_transformer(name, 384),
    "vit-5m": lambda name: vision_transformer(name, 192),
    "cnn-3m": crack_cnn,
}
