"""From collections to distances: which values a group has, running averages, what is compared with what, and when."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fat_ray.fisher.collector import Sums
from fat_ray.fisher.drift import Floats32, js_distance
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, Measurement
from fat_ray.spec.run import DriftSpec, FisherSpec, GroupSpec

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {"centre": "none", "noise": "none"}


def meter_of(model: nn.Module, blocks: int = 1, average: str = "none", decay: float = 0.8, **drift: Any) -> DriftMeter:
    groups = GroupSpec(blocks=blocks, min_block=1)
    fisher = FisherSpec.model_validate({"groups": groups, "average": average, "decay": decay})
    return DriftMeter(model, build_groups(model, groups), fisher, DriftSpec.model_validate(drift))


def no_gradient(name: str) -> Any:
    raise AssertionError(f"nobody should ask for the gradient of {name}")


def collection(rng: np.random.Generator, halves: tuple[int, ...] = (1,), columns: tuple[int, ...] = (1, 6), rows: int = 8) -> Sums:
    """Sums of a layer called ``0`` with lognormal factors."""
    shapes = {"row": (rows,), "column": columns}
    return {("0", part, half): (torch.from_numpy(rng.lognormal(size=shape)), 1.0) for part, shape in shapes.items() for half in halves}


def update(meter: DriftMeter, sums: Sums, active: list[bool]) -> Measurement:
    return meter.update(sums, no_gradient, np.array(active), CPU)


def values(sums: Sums, rows: slice = slice(None)) -> Floats32:
    row, column = (sums["0", part, 1][0].numpy().astype(np.float32) for part in ("row", "column"))
    return np.concatenate([np.outer(row[rows], column[0]).ravel(), row[rows]])


def test_distance_is_that_of_the_outer_products() -> None:
    meter = meter_of(nn.Sequential(nn.Linear(6, 8)), blocks=2, **PLAIN)
    rng = np.random.default_rng(0)
    first, second = collection(rng), collection(rng)
    assert not update(meter, first, [True, True]).measured.any()
    found = update(meter, second, [True, True])
    assert found.measured.all()
    for index, rows in enumerate([slice(0, 4), slice(4, 8)]):
        assert found.distance[index] == pytest.approx(js_distance(values(first, rows), values(second, rows)), abs=1e-12)


def test_column_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(6, 4, 3, groups=2, bias=False))
    groups = GroupSpec(along="columns", blocks=3, min_block=1)
    meter = DriftMeter(model, build_groups(model, groups), FisherSpec(groups=groups, average="none"), DriftSpec.model_validate(PLAIN))
    rng = np.random.default_rng(0)
    sums = [collection(rng, columns=(2, 3, 3, 3), rows=4) for _ in range(2)]
    update(meter, sums[0], [True] * 3)
    found = update(meter, sums[1], [True] * 3)
    for index in range(3):
        states = []
        for s in sums:
            row, column = (s["0", part, 1][0].numpy().astype(np.float32) for part in ("row", "column"))
            weight = np.stack([row[o] * column[o // 2] for o in range(4)])
            states.append(weight[:, index].ravel())
        assert found.distance[index] == pytest.approx(js_distance(*states), abs=1e-12)


def test_depthwise_rows_use_the_inputs_of_their_own_channel() -> None:
    meter = meter_of(nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False)), **PLAIN)
    rng = np.random.default_rng(1)
    sums = [collection(rng, columns=(4, 1, 3, 3)) for _ in range(2)]
    update(meter, sums[0], [True])
    found = update(meter, sums[1], [True])
    states = []
    for s in sums:
        row, column = (s["0", part, 1][0].numpy().astype(np.float32) for part in ("row", "column"))
        states.append(np.stack([row[o] * column[o // 2] for o in range(8)]).ravel())
    assert found.distance[0] == pytest.approx(js_distance(*states), abs=1e-12)


@pytest.mark.parametrize("average", ["bias_corrected", "decayed", "reset", "none"])
def test_equal_collections_have_no_drift_however_short_the_history(average: str) -> None:
    meter = meter_of(nn.Sequential(nn.Linear(6, 8)), average=average, **PLAIN)
    sums = collection(np.random.default_rng(0))
    update(meter, sums, [True])
    for _ in range(3):
        assert update(meter, sums, [True]).distance[0] == pytest.approx(0, abs=1e-6)


def test_running_averages() -> None:
    rng = np.random.default_rng(0)
    sums = [collection(rng) for _ in range(3)]
    weights = {"bias_corrected": [0.8 * 0.2, 0.2], "decayed": [0.8, 0.2], "reset": [0.0, 0.2], "none": [0.0, 1.0]}
    for average, (old, new) in weights.items():
        meter = meter_of(nn.Sequential(nn.Linear(6, 8)), average=average, **PLAIN)
        for s in sums[:2]:
            found = update(meter, s, [True])
        mixed = {}
        for key, (first, _) in sums[0].items():
            second = sums[1][key][0]
            constant = 0.8 if average == "reset" else 0.0
            scale = old + new if average == "bias_corrected" else 1.0
            mixed[key] = ((old * first + new * second) / scale + constant, 1.0)
        start = {key: (value * 0.2 + 0.8, 1.0) for key, (value, _) in sums[0].items()} if average == "reset" else sums[0]
        assert found.distance[0] == pytest.approx(js_distance(values(start), values(mixed)), abs=1e-9)


def test_element_wise_average() -> None:
    meter = meter_of(nn.Sequential(nn.Linear(6, 8)), compare="average", **PLAIN)
    rng = np.random.default_rng(0)
    sums = [collection(rng) for _ in range(4)]
    average = values(sums[0])
    assert not update(meter, sums[0], [True]).measured.any()
    for s in sums[1:]:
        current = values(s)
        assert update(meter, s, [True]).distance[0] == pytest.approx(js_distance(average, current), abs=1e-12)
        average = np.float32(0.9) * average + np.float32(1.0 - 0.9) * current


def test_frozen_groups_are_not_compared() -> None:
    meter = meter_of(nn.Sequential(nn.Linear(6, 8)), blocks=2, **PLAIN)
    rng = np.random.default_rng(0)
    update(meter, collection(rng), [True, True])
    found = update(meter, collection(rng), [True, False])
    assert found.measured.tolist() == [True, False]
    assert found.distance[1] == 0


def test_what_is_not_finite_is_said_and_not_compared() -> None:
    meter = meter_of(nn.Sequential(nn.Linear(6, 8)), **PLAIN)
    sums = collection(np.random.default_rng(0))
    update(meter, sums, [True])
    sums["0", "row", 1][0][3] = float("nan")
    found = update(meter, sums, [True])
    assert not found.finite
    assert not found.measured.any()


@pytest.mark.parametrize("uncovered", ["squared_gradient", "zero"])
def test_parameters_without_factors(uncovered: str) -> None:
    model = nn.Sequential(nn.PReLU(40), nn.Linear(4, 3))
    groups = GroupSpec(blocks=1, min_block=1)
    fisher = FisherSpec.model_validate({"groups": groups, "average": "none", "uncovered": uncovered})
    meter = DriftMeter(model, build_groups(model, groups), fisher, DriftSpec.model_validate(PLAIN))
    rng = np.random.default_rng(2)
    gradients = [rng.lognormal(size=40) for _ in range(2)]
    for gradient in gradients:
        found = meter.update({}, lambda name, g=gradient: {"0.weight": g}[name], np.array([True, False]), CPU)  # type: ignore[misc]
    assert meter.dead.tolist() == [uncovered == "zero", False]
    assert found.measured.tolist() == [uncovered != "zero", False]
    if uncovered != "zero":
        assert found.distance[0] == pytest.approx(js_distance(*(g.astype(np.float32) for g in gradients)), abs=1e-12)


def test_squared_gradients_of_consecutive_collections_are_the_halves_of_the_swap_null() -> None:
    meter = meter_of(nn.Sequential(nn.PReLU(4000)), centre="median", noise="swap")
    rng = np.random.default_rng(3)
    before = rng.lognormal(size=4000)
    after = before * np.exp(rng.normal(size=4000))
    measured = []
    for step in range(6):
        noisy = (after if step >= 4 else before) * rng.gamma(20, 1 / 20, 4000)
        found = meter.update({}, lambda name, g=noisy: g, np.array([True]), CPU)  # type: ignore[misc]
        measured.append(found.distance[0] if found.measured[0] else None)
    assert [value is None for value in measured] == [True, True, True, False, True, False]
    assert abs(measured[3]) < 0.004  # type: ignore[arg-type]
    assert measured[5] > 0.01  # type: ignore[operator]


def noisy_collection(rng: np.random.Generator, row: Any, column: Any) -> Sums:
    """Two independent estimates of the same factors, with the noise of a mean over 20 squares."""

    def noisy(level: Any) -> torch.Tensor:
        return torch.from_numpy(level * rng.gamma(20, 1 / 20, level.shape))

    return {("0", part, half): (noisy(level), 1.0) for part, level in (("row", row), ("column", column)) for half in (0, 1)}


SIZES = [(8, 1), (16, 3), (8, 8), (32, 32), (64, 256), (128, 512)]


def null_mean(rows: int, columns: int, average: str, drift: float, noise: str, repeats: int) -> tuple[float, float]:
    """Mean and standard error of the measured distance of a group of rows x columns over independent runs."""
    rng = np.random.default_rng(rows * 10_007 + columns)
    found = []
    for _ in range(repeats):
        model = nn.Sequential(nn.Linear(columns, rows, bias=False))
        meter = meter_of(model, average=average, noise=noise, centre="median")
        row, column = rng.lognormal(size=rows), rng.lognormal(size=(1, columns))
        halves = (0, 1) if noise == "swap" else (1,)
        for step in range(6):
            if step:
                row, column = row * np.exp(drift * rng.normal(size=rows)), column * np.exp(drift * rng.normal(size=(1, columns)))
            sums = {key: value for key, value in noisy_collection(rng, row, column).items() if key[2] in halves}
            measurement = update(meter, sums, [True])
        found.append(measurement.distance[0])
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(repeats))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("average", ["none", "bias_corrected"])
def test_the_swap_null_removes_the_trend_with_group_size(average: str) -> None:
    """Without drift the corrected distance has mean 0 at every size, with running averages too, while the plain one falls with size."""
    repeats = {size: 150 if size[0] * size[1] < 5000 else 15 for size in SIZES}
    plain = [null_mean(*size, average, 0.0, "none", min(repeats[size], 40))[0] for size in SIZES]
    corrected = [null_mean(*size, average, 0.0, "swap", repeats[size]) for size in SIZES]
    assert plain[0] > 0.4
    assert plain[-1] < 0.15 * plain[0]
    for mean, error in corrected:
        assert abs(mean) < 4 * error + 0.004
    assert abs(corrected[-1][0]) < 0.001


@pytest.mark.timeout(60)
def test_the_corrected_distance_sees_drift_at_every_size() -> None:
    drifted = [null_mean(*size, "bias_corrected", 0.5, "swap", 150 if size[0] * size[1] < 5000 else 15) for size in SIZES]
    for mean, error in drifted:
        assert mean > 5 * error
