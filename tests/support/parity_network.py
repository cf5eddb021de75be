"""The network of the recorded runs (tests/data/parity), and those runs read from disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

DATA = Path(__file__).parents[1] / "data" / "parity"


class Attention(nn.Module):
    """Two-head self-attention with a fused projection, flattened as (3, heads, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    """Pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(16)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(16)
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ParityNetwork(nn.Module):
    """Convolutions, BatchNorm, a bare parameter, two transformer blocks and a head."""

    def __init__(self, *, conv_bias: bool = True) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.zeros(1, 16, 16))
        self.patch = nn.Conv2d(3, 16, 4, stride=4, bias=conv_bias)
        self.bn = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 16, 3, padding=1, bias=conv_bias)
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.mix(self.bn(self.patch(images)).relu()).flatten(2).transpose(1, 2) + self.pos
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


@dataclass(frozen=True)
class Recorded:
    """One recorded run.

    Attributes:
        arrays: The npz file.
        facts: The JSON file.
    """

    arrays: Any
    facts: dict[str, Any]

    def network(self) -> ParityNetwork:
        """The network with its recorded initial state."""
        model = ParityNetwork(**self.facts["model"])
        state = {key.removeprefix("init/"): torch.from_numpy(self.arrays[key]) for key in self.arrays.files if key.startswith("init/")}
        model.load_state_dict(state)
        return model

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a step."""
        return torch.from_numpy(self.arrays["x"][step]), torch.from_numpy(self.arrays["y"][step])


def recorded(name: str) -> Recorded:
    """`row_tv` or `col_mean_raw`."""
    return Recorded(np.load(DATA / f"{name}.npz"), json.loads((DATA / f"{name}.json").read_text()))
