"""Kronecker factors against their definition, computed by brute force in float64: unfolded patches, explicit loops, autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fat_ray.fisher.collector import Collector
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.reduce import Means, reduce_sums

CPU = torch.device("cpu")
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 7), (4, 5)),
    "linear on tokens": (lambda: nn.Linear(5, 7, bias=False), (4, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (4, 4, 7, 8)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), (4, 4, 7, 8)),
    "conv2d reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 4, 7, 8)),
    "conv2d circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 4, 7, 8)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 4, 7, 8)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), (4, 4, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, stride=2), (4, 2, 4, 5, 6)),
}


def collected(layer: nn.Module, x: Tensor, weight: Tensor, parts: int = 1) -> Means:
    """Factors of the mean over examples of <layer(x), weight>, the batch spread over `parts` micro-batches."""
    model = nn.Sequential(layer)
    collector = Collector(model, build_groups(model, 1, 1))
    sums = {}
    for x_part, weight_part in zip(x.chunk(parts), weight.chunk(parts), strict=True):
        collector.arm(["0"], len(x_part))
        ((model(x_part) * weight_part).sum() / len(x_part)).backward()
        for key, (value, count) in collector.take().items():
            before = sums.get(key, (torch.zeros_like(value), 0))
            sums[key] = (before[0] + value, before[1] + count)
    return reduce_sums(sums, CPU)


def defined_convolution_h(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Mean over examples and positions of each squared patch entry, read off one-hot kernels: shape (groups, columns)."""
    columns = layer.weight[0].numel()
    probe = type(layer)(
        layer.in_channels,
        layer.groups,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
    ).double()
    result = torch.zeros(layer.groups, columns, dtype=torch.float64)
    for column in range(columns):
        with torch.no_grad():
            probe.weight.zero_()
            probe.weight.view(layer.groups, columns)[:, column] = 1
            patch = probe(x.double())
        result[:, column] = patch.square().mean(dim=[d for d in range(patch.ndim) if d != 1])
    return result


@pytest.mark.parametrize("name", LAYERS)
def test_factors_equal_their_definition(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    output = layer(x)
    gradient = torch.randn_like(output)
    means = collected(layer, x, gradient)
    if isinstance(layer, nn.Linear):
        expected_h = x.double().reshape(-1, shape[-1]).square().mean(0, keepdim=True)
        expected_s = gradient.double().reshape(-1, output.shape[-1]).square().mean(0)
    else:
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        expected_h = defined_convolution_h(layer, x)
        expected_s = gradient.double().square().mean(dim=[d for d in range(gradient.ndim) if d != 1])
    torch.testing.assert_close(torch.from_numpy(means["0", "H"]), expected_h, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.from_numpy(means["0", "S"]), expected_s, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_factors_do_not_depend_on_micro_batches(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    gradient = torch.randn_like(layer(x))
    whole, split = collected(layer, x, gradient), collected(layer, x, gradient, parts=2)
    for key, value in whole.items():
        torch.testing.assert_close(split[key], value, rtol=1e-5, atol=1e-8)


def test_norm_factors() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 5) * 4 + 2
    gradient = torch.randn(6, 3, 5)
    layer_norm = collected(nn.LayerNorm(5), x, gradient)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(torch.from_numpy(layer_norm["0", "H"]).float(), normal.square().mean((0, 1)), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.from_numpy(layer_norm["0", "S"]).float(), gradient.square().mean((0, 1)), rtol=1e-5, atol=1e-7)
    batch_norm = collected(nn.BatchNorm1d(3), x, gradient)
    assert batch_norm["0", "H"].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(torch.from_numpy(batch_norm["0", "S"]).float(), gradient.square().mean((0, 2)), rtol=1e-5, atol=1e-7)


def test_forwards_without_gradients_leave_no_trace() -> None:
    layer, x, gradient = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    expected = collected(layer, x, gradient)
    model = nn.Sequential(layer)
    collector = Collector(model, build_groups(model, 1, 1))
    collector.arm(["0"], 4)
    with torch.no_grad():
        model(100 * x)
    ((model(x) * gradient).sum() / 4).backward()
    found = reduce_sums(collector.take(), CPU)
    assert all((found[key] == expected[key]).all() for key in expected)
    assert not layer._forward_hooks


def test_a_layer_called_twice_sums_over_its_calls() -> None:
    layer, x, gradient = nn.Linear(3, 3), torch.randn(4, 3), torch.randn(4, 3)
    model = nn.Sequential(layer)
    collector = Collector(model, build_groups(model, 1, 1))
    collector.arm(["0"], 4)
    (((layer(x) + layer(2 * x)) * gradient).sum() / 4).backward()
    found = reduce_sums(collector.take(), CPU)
    torch.testing.assert_close(found["0", "H"], (x.double().square() * 2.5).mean(0, keepdim=True).numpy(), rtol=1e-5, atol=1e-7)
