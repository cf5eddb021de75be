"""Adapters of the real peft: added without changing the model, trained alone, merged back into the plain model."""

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fat_ray.errors import PolicyError
from fat_ray.fisher.groups import build_groups
from fat_ray.freeze.context import describe, group_spec, prepare_model
from fat_ray.freeze.freezer import Freezer
from fat_ray.freeze.lora import is_adapter, plain_model
from fat_ray.freeze.policies import build_policy
from fat_ray.spec.run import FreezeSpec, GroupSpec, MethodSpec
from fat_ray.tasks.crack.model import CrackSegmenter

pytest.importorskip("peft", reason="peft is not installed")

KERNELS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Network(nn.Module):
    """A convolution of 1, 2 or 3 dimensions, a norm, linear layers and a head."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.conv = KERNELS[dims](2, 6, 3, stride=2, padding=1)
        self.point = KERNELS[dims](6, 6, 2 if dims == 3 else 1, bias=False)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 6, bias=False))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.point(torch.relu(self.conv(x))).flatten(2).mean(2)
        return self.head(features + self.mlp(features))  # type: ignore[no-any-return]


def network(dims: int = 2) -> Network:
    torch.manual_seed(0)
    return Network(dims)


def batch(dims: int) -> Tensor:
    return torch.randn(4, 2, *(7,) * dims, generator=torch.Generator().manual_seed(1))


def lora(**fields: Any) -> FreezeSpec:
    return FreezeSpec(policy="lora", rank=2, **fields)


def adapted(model: nn.Module) -> set[str]:
    """Paths of the layers that have adapters."""
    return {name.partition(".lora_")[0] for name, _ in model.named_parameters() if is_adapter(name)}


def train(model: nn.Module, spec: FreezeSpec, x: Tensor, steps: int = 3) -> Freezer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    freezer = Freezer(model, optimizer, MethodSpec(freeze=spec))
    for _ in range(steps):
        optimizer.zero_grad()
        freezer.arm(len(x))
        model(x).square().mean().backward()
        freezer.after_backward()
        optimizer.step()
    return freezer


@pytest.mark.parametrize("dims", KERNELS)
def test_adapters_change_nothing_at_first_and_all_that_trained_still_does(dims: int) -> None:
    plain, x = network(dims), batch(dims)
    model = prepare_model(copy.deepcopy(plain), lora(), seed=5)
    assert torch.equal(model(x), plain(x))
    assert adapted(model) == {"conv", "point", "mlp.0", "mlp.3"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    covered = sum(group.elements for group in build_groups(model, GroupSpec()))
    own = sum(parameter.numel() for parameter in plain.parameters())
    assert covered == own + sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter(name))


def test_adapters_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = prepare_model(network(), lora(), seed=5).state_dict()
    torch.manual_seed(99)
    torch.randn(3)
    same, other = (prepare_model(network(), lora(), seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["conv.lora_A.default.weight"], other["conv.lora_A.default.weight"])
    torch.set_rng_state(state)
    before = network()
    untouched = torch.get_rng_state()
    prepare_model(before, lora(), seed=5)
    assert torch.equal(torch.get_rng_state(), untouched)


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("dims", KERNELS)
def test_only_adapters_and_head_train_and_merge_into_the_plain_model(dims: int, train_head: bool) -> None:
    spec, x, before = lora(train_head=train_head), batch(dims), network(dims)
    model = prepare_model(copy.deepcopy(before), spec, seed=0)
    freezer = train(model, spec, x)
    for name, value in model.named_parameters():
        original = name.replace(".base_layer", "")
        moves = is_adapter(name) or (train_head and original.startswith("head."))
        assert moves == (is_adapter(name) or not torch.equal(value, before.get_parameter(original)))
    active = {freezer.groups[index].layer for index in np.flatnonzero(freezer.entries.active)}
    assert all(".lora_" in layer or (train_head and layer == "head") for layer in active)
    merged = plain_model(model)
    assert list(merged.state_dict()) == list(before.state_dict())
    assert [type(module) for module in merged.modules()] == [type(module) for module in before.modules()]
    torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(merged(x), before(x), atol=1e-3)
    assert adapted(model)
    before.load_state_dict(merged.state_dict())
    assert torch.equal(before(x), merged(x))


def test_a_model_without_adapters_is_its_own_plain_model() -> None:
    model = network()
    assert plain_model(model) is model


def test_adapters_that_are_there_are_kept() -> None:
    model = prepare_model(network(), lora(), seed=0)
    before = copy.deepcopy(model.state_dict())
    assert prepare_model(model, lora(), seed=1) is model
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_crack_network_gets_adapters_where_they_can_be_merged() -> None:
    torch.manual_seed(0)
    plain = CrackSegmenter(head_width=8, batchnorm_momentum=0.1).eval()
    model = prepare_model(copy.deepcopy(plain), lora(), seed=0).eval()
    expected = {name for name, m in plain.encoder.named_modules(prefix="encoder") if isinstance(m, nn.Conv2d) and m.groups == 1}
    assert len(expected) > 20  # peft shortens lists of so many targets
    assert adapted(model) == expected
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(x), plain(x))
    spec = lora()
    groups = build_groups(model, group_spec(spec, GroupSpec()))
    context = describe(model, groups, spec)
    assert context.head == ("head",)
    assert build_policy(spec, context).is_due(0)


@pytest.mark.parametrize(
    ("targets", "expected"), [(["mlp.3"], {"mlp.3"}), (["0", "point"], {"mlp.0", "point"}), (["conv", "mlp.0"], {"conv", "mlp.0"})]
)
def test_targets_are_paths_or_their_ends(targets: list[str], expected: set[str]) -> None:
    assert adapted(prepare_model(network(), lora(targets=targets), seed=0)) == expected


class Awkward(nn.Module):
    """Layers that cannot have adapters, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.dilated = nn.Conv2d(4, 4, 3, dilation=2)
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.point = nn.Conv3d(4, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8)
        self.tied = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.fine = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)


def test_layers_that_cannot_be_merged_get_none() -> None:
    assert adapted(prepare_model(Awkward(), lora(), seed=0)) == {"fine"}


def test_a_path_that_ends_like_another_is_not_the_other() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 1)), nn.Linear(4, 2))
    assert adapted(prepare_model(model, lora(), seed=0)) == {"0", "1.1"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("depthwise", "depthwise cannot have an adapter: convolutions with groups cannot be merged"),
        ("dilated", "neither dilation nor the padding mode"),
        ("reflect", "neither dilation nor the padding mode"),
        ("point", "takes it for a pointwise Conv2d"),
        ("out_proj", "attention.out_proj cannot have an adapter: MultiheadAttention reads its weight without calling it"),
        ("encoder.linear1", "TransformerEncoderLayer reads its weight without calling it"),
        ("tied", "another layer has the same weight"),
        ("normed", "its weight is made of other parameters"),
        ("absent", "'absent' names no Linear or convolution of the model"),
        ("head", "'head' lies in the head, which trains by itself"),
    ],
)
def test_a_target_that_cannot_have_an_adapter_is_refused(target: str, message: str) -> None:
    with pytest.raises(PolicyError, match=rf"freeze\.targets: .*{message}"):
        prepare_model(Awkward(), lora(targets=[target]), seed=0)


def test_a_model_that_is_all_head_is_refused() -> None:
    with pytest.raises(PolicyError, match="no layer outside the head can have an adapter"):
        prepare_model(nn.Sequential(nn.Linear(2, 2)), lora(), seed=0)


def test_without_peft_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PolicyError, match=r"pip install 'fat-ray\[lora\]'"):
        prepare_model(network(), lora(), seed=0)


@pytest.mark.parametrize("policy", ["none", "fisher_drift", "bitfit", "head_only"])
def test_other_policies_leave_the_model_alone(policy: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    assert prepare_model(model, FreezeSpec(policy=policy), seed=0) is model
    assert list(model.state_dict()) == list(before)
