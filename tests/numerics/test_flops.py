"""Analytic FLOPs against torch's own counter of what was executed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fat_ray.engine.flops import FlopMeter
from fat_ray.fisher.groups import build_groups
from fat_ray.freeze.entries import ActiveEntries
from fat_ray.spec.run import GroupSpec


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Flatten(),
        nn.Linear(6 * 12 * 12, 5),
    )


@pytest.mark.parametrize("frozen_layers", [set(), {"0"}, {"0", "2"}, {"2", "5"}, {"0", "2", "3"}])
def test_counts_what_torch_executes(frozen_layers: set[str]) -> None:
    model = network()
    groups = build_groups(model, GroupSpec(blocks=1, min_block=1))
    entries = ActiveEntries(model, torch.optim.SGD(model.parameters(), lr=0.1), groups)
    entries.freeze(np.array([group.layer in frozen_layers for group in groups]))
    meter = FlopMeter(model)
    meter.arm()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert meter.take() == counter.get_total_flops()
    assert all(not module._forward_hooks for module in model.modules())


def test_a_depthwise_convolution_costs_one_multiply_add_per_tap_three_times() -> None:
    """Not compared with torch's counter, which ignores groups in the weight gradient (torch 2.13)."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    meter = FlopMeter(model)
    meter.arm()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    pointwise, depthwise = 2 * 3 * 8 * 2 * 16 * 16, 2 * 9 * 8 * 2 * 14 * 14
    assert meter.take() == 2 * pointwise + 3 * depthwise  # the first layer needs no input gradient
