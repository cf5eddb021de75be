"""From means to distances: which values a group has, running averages, and what is measured when."""

import numpy as np
import pytest
import torch
from torch import nn

from fat_ray.fisher.drift import js_distance
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter
from fat_ray.fisher.reduce import Means
from fat_ray.spec.run import DriftSpec, FisherSpec

CPU = torch.device("cpu")


def linear_means(rng: np.random.Generator) -> Means:
    return {("0", "H"): rng.lognormal(size=(1, 6)), ("0", "S"): rng.lognormal(size=8)}


def test_distance_is_that_of_the_outer_products() -> None:
    model = nn.Sequential(nn.Linear(6, 8))
    groups = build_groups(model, GroupSpec(blocks=2, min_block=1))
    meter = DriftMeter(model, groups, FisherSpec(average="none"), DriftSpec(centre="none"))
    rng = np.random.default_rng(0)
    first, second = linear_means(rng), linear_means(rng)
    active = np.ones(2, bool)
    assert not meter.update(first, active, CPU)[1].any()
    distance, measured = meter.update(second, active, CPU)
    assert measured.all()
    for index, rows in enumerate([slice(0, 4), slice(4, 8)]):
        states = []
        for means in (first, second):
            h, s = means["0", "H"].astype(np.float32), means["0", "S"].astype(np.float32)
            states.append(np.concatenate([np.outer(s[rows], h[0]).ravel(), s[rows]]))
        assert distance[index] == pytest.approx(js_distance(*states), abs=1e-12)


def test_running_average_is_corrected_for_its_start() -> None:
    model = nn.Sequential(nn.Linear(6, 8))
    groups = build_groups(model, GroupSpec(blocks=1, min_block=1))
    meter = DriftMeter(model, groups, FisherSpec(decay=0.8), DriftSpec())
    means = linear_means(np.random.default_rng(0))
    meter.update(means, np.ones(1, bool), CPU)
    distance, _ = meter.update(means, np.ones(1, bool), CPU)
    assert distance[0] == pytest.approx(0, abs=1e-6)  # equal collections: no drift, however short the history


def test_depthwise_rows_use_the_inputs_of_their_own_channel() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False))
    meter = DriftMeter(model, build_groups(model, GroupSpec(blocks=1, min_block=1)), FisherSpec(average="none"), DriftSpec(centre="none"))
    rng = np.random.default_rng(1)
    collections = [{("0", "H"): rng.lognormal(size=(4, 9)), ("0", "S"): rng.lognormal(size=4)} for _ in range(2)]
    meter.update(collections[0], np.ones(1, bool), CPU)
    distance, _ = meter.update(collections[1], np.ones(1, bool), CPU)
    states = [(c["0", "S"].astype(np.float32)[:, None] * c["0", "H"].astype(np.float32)).ravel() for c in collections]
    assert distance[0] == pytest.approx(js_distance(*states), abs=1e-12)


def test_parameters_without_factors_use_their_squared_gradient() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    groups = build_groups(model, GroupSpec(blocks=1, min_block=1))
    meter = DriftMeter(model, groups, FisherSpec(average="none"), DriftSpec(centre="none"))
    assert meter.uncovered(np.array([True, True])) == ["0.weight"]
    assert meter.uncovered(np.array([False, True])) == []
    rng = np.random.default_rng(2)
    gradients = [rng.lognormal(size=(10, 4)) for _ in range(2)]
    for gradient in gradients:
        distance, measured = meter.update({("0.weight", "G"): gradient}, np.array([True, False]), CPU)
    assert measured.tolist() == [True, False]
    assert distance[0] == pytest.approx(js_distance(*(g.astype(np.float32) for g in gradients)), abs=1e-12)
    assert distance[1] == 0
