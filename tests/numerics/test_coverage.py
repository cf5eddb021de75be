"""Networks as people build them: adapters, weights made of other parameters, lists of parameters, parts frozen from the start."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from bench.coverage import KINDS, estimates, inputs, per_example
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.factors import ExactFormulas
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, Measurement
from fat_ray.spec.run import DriftSpec, FisherSpec, GroupSpec
from tests.support.factors import collect

CPU = torch.device("cpu")
BATCH = 8
GROUPS = GroupSpec(blocks=2, min_block=1)


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(1)), torch.arange(BATCH) % 3


def measured(model: nn.Module, updates: int = 5) -> tuple[DriftMeter, Measurement]:
    """The default meter on a model that trains, all groups active."""
    groups = build_groups(model, GROUPS)
    meter = DriftMeter(model, groups, FisherSpec(groups=GROUPS), DriftSpec())
    collector = Collector(model, groups, ExactFormulas(), halves=meter.halves)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x, y = batch()

    def squares(name: str) -> np.ndarray:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        return gradient.double().square().numpy()

    for _ in range(updates):
        collector.arm([group.layer for group in groups], Share(BATCH))
        optimizer.zero_grad()
        classified(model, x, y).backward()
        found = meter.update(collector.take(), squares, np.ones(len(groups), bool), CPU)
        optimizer.step()
    return meter, found


def covered(model: nn.Module) -> set[str]:
    return set(Collector(model, build_groups(model, GROUPS), ExactFormulas()).layers)


class LoraLinear(nn.Module):
    """A linear layer as peft 0.21 wraps it: the frozen base as a child, adapters in ModuleDicts by name, called as modules."""

    def __init__(self, base: nn.Linear, rank: int = 2, alpha: int = 4) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(requires_grad=False)
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)  # type: ignore[arg-type]
        self.scaling = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        down = self.lora_A["default"](self.lora_dropout["default"](x))
        return self.base_layer(x) + self.lora_B["default"](down) * self.scaling  # type: ignore[no-any-return]


def adapted(wrap: Callable[[nn.Sequential], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return wrap(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))).train()


def by_hand(model: nn.Sequential) -> nn.Module:
    return nn.Sequential(LoraLinear(model[0]), model[1], LoraLinear(model[2]))  # type: ignore[arg-type]


def by_peft(model: nn.Sequential) -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrap", [by_hand, by_peft])
def test_lora_adapters_have_factors_and_their_frozen_base_has_no_groups(wrap: Callable[[nn.Sequential], nn.Module]) -> None:
    model = adapted(wrap)
    trainable = {name.removesuffix(".weight") for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 4
    assert covered(model) == trainable
    (state,) = collect(model, classified, *batch())
    (first_b,) = (layer for layer in trainable if layer.endswith("0.lora_B.default"))
    seen: list[Tensor] = []
    hook = model.get_submodule(first_b).register_forward_hook(lambda module, args, output: seen.append(args[0]))
    classified(model, *batch())
    hook.remove()
    expected = seen[0].detach().double().square().mean(0, keepdim=True)
    torch.testing.assert_close(torch.from_numpy(state[first_b, "column"]), expected, rtol=1e-4, atol=1e-9)
    _, found = measured(model)
    assert found.finite
    assert found.measured.all()


def old_weight_norm(layer: nn.Linear) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "make", [parametrizations.weight_norm, parametrizations.spectral_norm, old_weight_norm, lambda m: prune.l1_unstructured(m, "weight", 3)]
)
def test_a_weight_made_of_other_parameters_counts_by_its_squared_gradient(make: Callable[[nn.Linear], nn.Module]) -> None:
    """The hooks see the weight that is made, not what it is made of; a bias beside it is what it was."""
    torch.manual_seed(0)
    model = nn.Sequential(make(nn.Linear(6, 8)), nn.Linear(8, 3)).train()
    groups = build_groups(model, GROUPS)
    meter, found = measured(model)
    for group, factored in zip(groups, meter.factored, strict=True):
        assert factored == all(member.role in ("weight", "bias") for member in group.members) & (group.layer in covered(model))
        assert not factored or group.layer == "1" or group.members[0].role == "bias"
    assert not meter.factored[[index for index, group in enumerate(groups) if "weight" in group.name and group.layer != "1"]].any()
    assert found.finite
    assert found.measured[meter.factored].all()


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(6), torch.ones(3, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scales[0]) + x @ self.scales[1].t()  # type: ignore[no-any-return]


def test_a_list_of_parameters_counts_by_its_squared_gradient() -> None:
    torch.manual_seed(0)
    model = Listed()
    meter, found = measured(model, updates=4)  # two collections are one state of two halves
    layers = [group.layer for group in build_groups(model, GROUPS)]
    assert meter.factored.tolist() == [layer == "head" for layer in layers]
    assert layers.count("scales") >= 2
    assert found.measured.all()


@pytest.mark.parametrize(
    ("frozen", "factored_groups"),
    [({"0.weight", "0.bias"}, {"2[0:1]", "2[1:3]"}), ({"0.weight", "2.weight"}, {"0", "2"}), ({"0.bias", "2.bias"}, None)],
)
def test_what_is_frozen_from_the_start_has_no_group_and_changes_nothing_else(frozen: set[str], factored_groups: set[str] | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    (whole,) = collect(model, classified, *batch())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    groups = build_groups(model, GROUPS)
    assert not frozen & {member.parameter for group in groups for member in group.members}
    assert factored_groups is None or {group.name for group in groups} == factored_groups
    (state,) = collect(model, classified, *batch())
    assert state.keys() == {key for key in whole if key[0] in {group.layer for group in groups}}
    for key, value in state.items():
        torch.testing.assert_close(value, whole[key], rtol=1e-6, atol=0)
    assert measured(model)[1].measured.all()


@pytest.mark.parametrize("name", ["Linear", "Conv2d, patches", "Conv2d, depthwise", "LayerNorm"])
def test_factors_follow_the_true_diagonal(name: str) -> None:
    """A cheap part of `python -m bench.coverage`; for one position per example and unit weights the bias is exact."""
    torch.manual_seed(0)
    x = inputs(KINDS[name], torch.Generator().manual_seed(0))
    model = nn.Sequential(KINDS[name].make())
    y = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(0))
    found = estimates(model, x, y, "0")
    kronecker, true = (np.log10(values) for values in found["weight"])
    assert np.corrcoef(kronecker, true)[0, 1] > 0.9
    if name == "Linear":
        np.testing.assert_allclose(*found["bias"], rtol=1e-4)
    assert per_example(model, x, y).shape == (len(x),)


def test_sync_batch_norm_has_the_factors_of_batch_norm() -> None:
    """In one process: on several, torch runs its forward on GPUs only."""
    x, y = torch.randn(BATCH, 3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.randn(BATCH, 3, 5, 4)

    def weighted(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return (model(inputs) * targets).sum() / len(inputs)

    plain, synced = (collect(nn.Sequential(kind(3)).train(), weighted, x, y)[0] for kind in (nn.BatchNorm2d, nn.SyncBatchNorm))
    assert plain.keys() == synced.keys() == {("0", "row"), ("0", "column")}
    for key, value in plain.items():
        torch.testing.assert_close(synced[key], value, rtol=1e-6, atol=0)
