"""What the corrected drift promises, whatever the network: bounds, symmetry, no eye for scale, a partition, a shrinking active set."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fat_ray.fisher.collector import Sums
from fat_ray.fisher.drift import MAX_DISTANCE
from fat_ray.fisher.flat import RunningAverage
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, build_formulas
from fat_ray.freeze.entries import ActiveEntries
from fat_ray.freeze.measured import FisherDrift
from fat_ray.freeze.policy import Observation, Policy
from fat_ray.freeze.scheduled import RandomMatched
from fat_ray.spec.run import DriftSpec, FisherSpec, FreezeSpec, GroupSpec, RunSpec
from tests.support.factors import collect

CPU = torch.device("cpu")
ROWS, COLUMNS = 24, 20
WHOLE = GroupSpec(blocks=1, min_block=1)
SPLIT = GroupSpec(blocks=2, min_block=1)


def random_sums(seed: int, halves: tuple[int, ...] = (0, 1)) -> Sums:
    """Factors of one linear layer, far above the 1e-12 that is added before the logarithm."""
    rng = np.random.default_rng(seed)
    shapes = {"row": (ROWS,), "column": (1, COLUMNS)}
    return {("0", part, half): (torch.from_numpy(rng.lognormal(size=shape)), 1.0) for part, shape in shapes.items() for half in halves}


def scaled(sums: Sums, part: str, factor: float) -> Sums:
    return {key: (value * factor if key[1] == part else value, count) for key, (value, count) in sums.items()}


def distances(*windows: Sums, average: str = "none", **drift: Any) -> np.ndarray[Any, Any]:
    """Of each group after the last window."""
    model = nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False))
    fisher = FisherSpec.model_validate({"groups": SPLIT, "average": average})
    meter = DriftMeter(model, build_groups(model, SPLIT), fisher, DriftSpec.model_validate(drift))
    active = np.ones(2, bool)
    for sums in windows:
        found = meter.update(sums, pytest.fail, active, CPU)
    assert found.measured.all()
    return found.distance


SEEDS = st.integers(0, 2**31)
SETTINGS = st.fixed_dictionaries(
    {
        "centre": st.sampled_from(["median", "none"]),
        "distance": st.sampled_from(["log", "raw"]),
        "compare": st.sampled_from(["previous", "average"]),
        "bins": st.sampled_from([2, 16, 64, "auto"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(SEEDS, SEEDS, SETTINGS)
def test_the_measured_distance_is_bounded_and_symmetric(first: int, second: int, drift: dict[str, Any]) -> None:
    windows = random_sums(first, (1,)), random_sums(second, (1,))
    there, back = (distances(*order, noise="none", **drift) for order in (windows, windows[::-1]))
    assert (there >= 0).all()
    assert (there <= MAX_DISTANCE + 1e-12).all()
    np.testing.assert_allclose(there, back, rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(SEEDS, SETTINGS, st.sampled_from(["none", "decayed", "bias_corrected"]))
def test_equal_windows_are_at_distance_zero(seed: int, drift: dict[str, Any], average: str) -> None:
    assert distances(*[random_sums(seed, (1,))] * 2, noise="none", average=average, **drift) == pytest.approx([0, 0], abs=1e-6)
    corrected = {"noise": "swap"} | ({"compare": "previous"} if drift["compare"] == "average" else {})
    # equal halves too: nothing moved and nothing is noise
    one = random_sums(seed, (1,))
    both = {(layer, part, half): value for (layer, part, _), value in one.items() for half in (0, 1)}
    assert distances(both, both, average=average, **(drift | corrected)) == pytest.approx([0, 0], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(-8, 8), st.sampled_from(["row", "column"]), st.sampled_from(["swap", "none"]))
def test_corrected_does_not_see_the_scale_of_a_window(seed: int, exponent: float, part: str, noise: str) -> None:
    """F ~ 1e6: c·F stays far above the 1e-12 inside the logarithm. Rounding may carry an entry or two of the 240 over a bin's edge."""
    halves = (0, 1) if noise == "swap" else (1,)
    before, after = (scaled(random_sums(seed + offset, halves), "row", 1e6) for offset in (0, 1))
    found, expected = (distances(before, scaled(after, part, c), noise=noise, centre="median") for c in (10.0**exponent, 1.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.005)


def test_without_centring_scale_is_drift() -> None:
    window = random_sums(0, (1,))
    assert (distances(window, scaled(window, "row", 10.0), noise="none", centre="none") > 0.3).all()
    assert distances(window, scaled(window, "row", 10.0), noise="none", centre="median") == pytest.approx([0, 0], abs=0.07)


def test_below_the_epsilon_scale_is_seen() -> None:
    """`log10(F + 1e-12)` is linear in F below 1e-12: what is scaled to there becomes narrow, centred or not."""
    window = scaled(random_sums(0, (1,)), "row", 1e-9)
    assert (distances(window, scaled(window, "row", 2.0**-27), noise="none", centre="median") > 0.3).all()


def test_no_trend_up_to_a_million_entries() -> None:
    """The largest size of the null, of which test_meter.py has the others; the plain distance shows that noise is there."""
    rng = np.random.default_rng(0)
    size = 1024
    found: dict[str, list[float]] = {"swap": [], "none": []}
    row, column = rng.lognormal(size=size), rng.lognormal(size=(1, size))
    model = nn.Sequential(nn.Linear(size, size, bias=False))
    for noise, kept in found.items():
        halves = (0, 1) if noise == "swap" else (1,)
        meter = DriftMeter(
            model, build_groups(model, WHOLE), FisherSpec(groups=WHOLE, average="none"), DriftSpec.model_validate({"noise": noise})
        )
        for _ in range(4):
            levels = {"row": row, "column": column}
            sums = {
                ("0", part, half): (torch.from_numpy(level * rng.gamma(20, 1 / 20, level.shape)), 1.0)
                for part, level in levels.items()
                for half in halves
            }
            kept.append(meter.update(sums, pytest.fail, np.ones(1, bool), CPU).distance[0])
    assert np.abs(found["swap"][1:]).max() < 1e-3
    assert np.min(found["none"][1:]) > 0


MODULES = st.sampled_from(
    [
        lambda: nn.Linear(5, 7),
        lambda: nn.Linear(6, 9, bias=False),
        lambda: nn.Conv2d(4, 6, (3, 2), groups=2),
        lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
        lambda: nn.GroupNorm(2, 6),
        lambda: nn.BatchNorm2d(5),
        lambda: nn.BatchNorm1d(5, affine=False),
        lambda: nn.LayerNorm([3, 5]),
        lambda: nn.RMSNorm(1),
        lambda: nn.Embedding(11, 3),
        lambda: nn.MultiheadAttention(6, 2),
        nn.PReLU,
        lambda: nn.LSTM(3, 4, bidirectional=True),
        lambda: nn.Bilinear(2, 3, 4),
        lambda: nn.ParameterList([torch.zeros(()), torch.zeros(3, 1, 2)]),
        lambda: nn.ParameterDict({"weight": torch.zeros(4, 4), "bias": torch.zeros(3)}),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)),
        lambda: nn.Linear(3, 3).requires_grad_(requires_grad=False),
        nn.ReLU,
    ]
)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Nested, named so that q/k/v may be cut, with a shared module and a tied weight at times."""

    def nest(depth: int) -> nn.Module:
        children = {}
        for index in range(draw(st.integers(1, 3))):
            inner = nest(depth - 1) if depth and draw(st.booleans()) else draw(MODULES)()
            children[draw(st.sampled_from(["attn", "qkv", "norm"])) + str(index) * draw(st.integers(0, 1))] = inner
        return nn.ModuleDict(children)

    model = nn.ModuleDict({"a": nest(2), "b": nest(1), "attn": nn.ModuleDict({"qkv": nn.Linear(4, 6)})})
    if draw(st.booleans()):
        model["shared"] = model["a"]
    if draw(st.booleans()):
        model["tied"] = nn.Linear(4, 6, bias=False)
        model["tied"].weight = model["attn"]["qkv"].weight  # type: ignore[index]
    if draw(st.booleans()):
        model.register_parameter("bare", nn.Parameter(torch.zeros(2, 3)))
    return model


GROUPINGS = st.builds(
    GroupSpec,
    along=st.sampled_from(["rows", "columns"]),
    blocks=st.integers(1, 9),
    min_block=st.integers(1, 4),
    bias=st.sampled_from(["with_rows", "apart"]),
    split_qkv=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(networks(), GROUPINGS)
def test_groups_partition_the_trainable_entries_of_any_network(model: nn.Module, spec: GroupSpec) -> None:
    groups = build_groups(model, spec)
    times = {name: np.zeros(p.shape, int) for name, p in model.named_parameters() if p.requires_grad}
    for group in groups:
        for member in group.members:
            times[member.parameter][member.index] += 1
    assert all((count == 1).all() for count in times.values())
    assert sum(group.elements for group in groups) == sum(count.size for count in times.values())
    assert len({group.name for group in groups}) == len(groups)
    assert all(group.elements for group in groups)


NUM_EVENTS = 6


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    spec = FreezeSpec(
        threshold=draw(st.floats(-2, 2)),
        floor=draw(st.floats(0, 1)),
        cap=draw(st.floats(0.01, 1)),
        confidence=draw(st.sampled_from([0.0, 1.0])),
    )
    targets = draw(st.lists(st.integers(0, 120), min_size=NUM_EVENTS, max_size=NUM_EVENTS))
    random_matched = RandomMatched(list(enumerate(targets)), seed=draw(SEEDS))
    return random_matched if draw(st.booleans()) else FisherDrift(spec, bury_dead=draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(SEEDS, policies())
def test_the_active_set_only_shrinks(seed: int, policy: Policy) -> None:
    """Under any scores, unmeasured groups included: what is frozen stays frozen, gets no gradient and is not decided upon again."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.LayerNorm(6))
    groups = build_groups(model, GroupSpec(blocks=4, min_block=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    entries = ActiveEntries(model, optimizer, groups)
    dead = rng.random(len(groups)) < 0.2
    for event in range(NUM_EVENTS):
        before = entries.active.copy()
        scores = np.where(rng.random(len(groups)) < 0.2, np.nan, rng.normal(size=len(groups)))
        errors, unknown = rng.random(len(groups)), np.full(len(groups), np.nan)
        observation = Observation(event, event, scores, errors, dead, before.copy(), entries.elements, unknown, unknown, unknown)
        decision = policy.decide(observation)
        assert not (decision.freeze & ~before).any()
        entries.set_active(before & ~decision.freeze)
        assert (entries.active == (before & ~decision.freeze)).all()
    seen = [parameter for held in optimizer.param_groups for parameter in held["params"]]
    assert set(seen) == {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for parameter in seen) >= entries.active_elements
    still = {member.parameter for group, on in zip(groups, entries.active, strict=True) if on for member in group.members}
    for name, parameter in model.named_parameters():
        assert name in still or name.startswith("active_runs.") or not parameter.requires_grad


@pytest.mark.parametrize(("preset", "told"), [("corrected", True), ("released", False)])
def test_factors_tell_true_labels_from_shuffled_ones_unless_they_restart(preset: str, told: bool) -> None:
    """A network that knows its labels meets them, and shuffled ones: S must differ, and where averages restart at one it does not.

    What this does to scores is measured by `python -m bench.labels`: too slow for a test.
    """
    spec = RunSpec.model_validate({"preset": preset}).fisher
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    y = (x.sum(1) > 0).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    formulas = build_formulas(spec)
    rows = []
    for labels in (y, y[torch.randperm(64, generator=generator)]):
        (state,) = collect(model, lambda m, a, b: functional.cross_entropy(m(a), b), x, labels, formulas=formulas)
        rows.append(RunningAverage(spec.average, spec.decay).update(state)["2", "row"])
    alive = rows[1] > rows[1].min()
    ratio = np.median(rows[1][alive] / rows[0][alive])
    assert ratio > 10 if told else 1 <= ratio < 1.05
