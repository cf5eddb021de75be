"""Gradients of sliced layers against those of the plain module, in float64: equal where active, absent where frozen."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fat_ray.freeze import kernels
from fat_ray.freeze.sliced import Cut, active_runs, plain_class, slice_layer

BATCH = 3


@dataclass(frozen=True)
class Case:
    """A layer, the shape of its whole input (integers below `vocabulary` if that is given), its cuts and what is frozen besides."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    cuts: Mapping[str, Cut]
    frozen: tuple[str, ...] = ()
    vocabulary: int = 0


def rows(*runs: tuple[int, int]) -> Cut:
    return Cut(0, runs)


def columns(*runs: tuple[int, int]) -> Cut:
    return Cut(1, runs)


class Bare(nn.Module):
    """A module of somebody, with parameters of any name and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 4))
        self.scales = nn.ParameterList([torch.randn(4), torch.randn(4)])

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.position) * self.scales[0] + self.scales[1]


class Scaled(nn.Linear):
    """Changes its base's forward."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x)[0]


IMAGE = (BATCH, 4, 7, 8)
LINEAR = {
    "rows": Case(lambda: nn.Linear(5, 8), (BATCH, 5), {"weight": rows((2, 5)), "bias": rows((2, 5))}),
    "scattered rows": Case(lambda: nn.Linear(5, 8), (BATCH, 5), {"weight": rows((0, 2), (3, 4), (6, 8)), "bias": rows((1, 3), (5, 6))}),
    "fused qkv": Case(lambda: nn.Linear(4, 12), (BATCH, 6, 4), {r: rows((1, 3), (5, 7), (9, 11)) for r in ("weight", "bias")}),
    "bias whole": Case(lambda: nn.Linear(5, 8), (BATCH, 5), {"weight": rows((2, 5))}),
    "bias frozen": Case(lambda: nn.Linear(5, 8), (BATCH, 5), {"weight": rows((2, 5))}, frozen=("bias",)),
    "bias absent": Case(lambda: nn.Linear(5, 8, bias=False), (BATCH, 5), {"weight": rows((2, 5))}),
    "weight whole": Case(lambda: nn.Linear(5, 8), (BATCH, 5), {"bias": rows((2, 5))}),
    "weight frozen": Case(lambda: nn.Linear(5, 8), (BATCH, 5), {"bias": rows((2, 5), (7, 8))}, frozen=("weight",)),
    "columns": Case(lambda: nn.Linear(5, 8), (BATCH, 5), {"weight": columns((1, 4))}),
    "scattered columns": Case(lambda: nn.Linear(6, 8), (2, BATCH, 6), {"weight": columns((0, 1), (3, 5)), "bias": rows((0, 4))}),
    "one example": Case(lambda: nn.Linear(5, 8), (5,), {"weight": rows((2, 5)), "bias": rows((2, 5))}),
    "empty batch": Case(lambda: nn.Linear(5, 8), (0, 5), {"weight": rows((2, 5)), "bias": rows((2, 5))}),
    "many dimensions": Case(lambda: nn.Linear(5, 8), (2, 1, BATCH, 5), {"weight": rows((7, 8)), "bias": rows((0, 1))}),
    "changed forward": Case(lambda: Scaled(5, 8), (BATCH, 5), {"weight": rows((2, 5)), "bias": rows((2, 5))}),
}
BOTH = {"weight": rows((1, 3), (5, 6)), "bias": rows((1, 3), (5, 6))}
CONVOLUTIONS = {
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (BATCH, 4, 9), BOTH),
    "conv2d": Case(lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), IMAGE, BOTH),
    "conv2d, one run": Case(lambda: nn.Conv2d(4, 6, 3), IMAGE, {"weight": rows((1, 4)), "bias": rows((0, 2))}),
    "conv2d 1x1": Case(lambda: nn.Conv2d(4, 6, 1), IMAGE, BOTH),
    "conv3d": Case(lambda: nn.Conv3d(2, 6, 2, stride=2), (BATCH, 2, 4, 5, 6), BOTH),
    "same": Case(lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), IMAGE, BOTH),
    "same, even kernel": Case(lambda: nn.Conv2d(4, 6, 4, padding="same"), IMAGE, BOTH),
    "valid": Case(lambda: nn.Conv2d(4, 6, 3, padding="valid"), IMAGE, BOTH),
    "reflect": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), IMAGE, BOTH),
    "replicate": Case(lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="replicate"), IMAGE, BOTH),
    "circular": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGE, BOTH),
    "circular same": Case(lambda: nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"), (BATCH, 4, 9), BOTH),
    "depthwise": Case(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE, {r: rows((0, 1), (2, 3)) for r in ("weight", "bias")}),
    "depthwise, twofold": Case(lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), IMAGE, {"weight": rows((1, 3), (6, 8))}),
    "whole groups": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), IMAGE, {"weight": rows((3, 6)), "bias": rows((3, 6))}),
    "parts of groups": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), IMAGE, BOTH),
    "in one group": Case(lambda: nn.Conv2d(4, 8, 3, groups=2), IMAGE, {"weight": rows((0, 1), (2, 3), (5, 6)), "bias": rows((0, 1))}),
    "over a group's edge": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), IMAGE, {"weight": rows((2, 5))}),
    "columns": Case(lambda: nn.Conv2d(4, 6, 3, padding=1), IMAGE, {"weight": columns((0, 1), (2, 3)), "bias": rows((2, 6))}),
    "columns of groups": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), IMAGE, {"weight": columns((1, 2))}),
    "bias whole": Case(lambda: nn.Conv2d(4, 6, 3), IMAGE, {"weight": rows((1, 4))}),
    "bias frozen": Case(lambda: nn.Conv2d(4, 6, 3), IMAGE, {"weight": rows((1, 4))}, frozen=("bias",)),
    "weight whole": Case(lambda: nn.Conv2d(4, 6, 3), IMAGE, {"bias": rows((1, 4))}),
    "weight frozen": Case(lambda: nn.Conv2d(4, 6, 3), IMAGE, {"bias": rows((1, 4))}, frozen=("weight",)),
    "unbatched": Case(lambda: nn.Conv2d(4, 6, 3), IMAGE[1:], BOTH),
    "empty batch": Case(lambda: nn.Conv2d(4, 6, 3), (0, *IMAGE[1:]), BOTH),
}
OTHERS = {
    "transposed": Case(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), IMAGE, {"weight": rows((1, 3)), "bias": rows((4, 6))}),
    "layer norm": Case(lambda: nn.LayerNorm(5), (BATCH, 5), {"weight": rows((1, 3)), "bias": rows((0, 1), (3, 5))}),
    "layer norm, columns": Case(lambda: nn.LayerNorm([4, 5]), (BATCH, 4, 5), {"weight": columns((1, 3)), "bias": rows((0, 1))}),
    "rms norm": Case(lambda: nn.RMSNorm(5), (BATCH, 5), {"weight": rows((1, 3))}),
    "group norm": Case(lambda: nn.GroupNorm(2, 6), (BATCH, 6, 4), BOTH),
    "batch norm": Case(lambda: nn.BatchNorm2d(4), IMAGE, {"weight": rows((1, 3)), "bias": rows((1, 3))}),
    "embedding": Case(lambda: nn.Embedding(9, 5, padding_idx=2), (BATCH, 6), {"weight": rows((1, 4), (7, 8))}, vocabulary=9),
    "embedding, columns": Case(lambda: nn.Embedding(9, 5), (BATCH, 6), {"weight": columns((1, 4))}, vocabulary=9),
    "attention": Case(lambda: SelfAttention(4, 2), (5, BATCH, 4), {"in_proj_weight": rows((0, 2), (5, 9)), "in_proj_bias": rows((2, 5))}),
    "bare": Case(Bare, (BATCH, 5, 4), {"position": rows((0, 1), (3, 5))}),
    "bare, columns": Case(Bare, (BATCH, 5, 4), {"position": columns((1, 2))}),
}
CASES = {
    f"{kind}: {name}": case
    for kind, cases in (("linear", LINEAR), ("convolution", CONVOLUTIONS), ("other", OTHERS))
    for name, case in cases.items()
}


def prepared(case: Case) -> tuple[nn.Module, nn.Module, Tensor]:
    """The plain layer, its sliced copy, and an input."""
    torch.manual_seed(0)
    plain = case.make().double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    x = torch.randint(0, case.vocabulary, case.shape) if case.vocabulary else torch.randn(case.shape, dtype=torch.float64)
    sliced = copy.deepcopy(plain)
    for role in case.frozen:
        getattr(sliced, role).requires_grad_(False)
    slice_layer(sliced, case.cuts)
    return plain, sliced, x


def backward(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Output and input gradient of a loss that weighs every output differently."""
    x = x.clone().requires_grad_(x.is_floating_point())
    output = layer(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    (output * weights).sum().backward()
    return output.detach(), x.grad


def whole(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


def check_gradients(case: Case, plain: nn.Module, sliced: nn.Module) -> None:
    runs = active_runs(sliced)
    assert set(runs) == set(case.cuts)
    for role, reference in whole(plain).items():
        leaves = runs[role][1] if role in runs else (() if role in case.frozen else (whole(sliced)[role],))
        parts = [case.cuts[role].alias(reference.grad, run) for run in case.cuts[role].runs] if role in runs else [reference.grad]
        for leaf, part in zip(leaves, parts if leaves else (), strict=True):
            torch.testing.assert_close(leaf.grad, part, rtol=1e-12, atol=1e-12)
        assert role in case.cuts or role in case.frozen or leaves
        if role in case.cuts or role in case.frozen:
            assert not whole(sliced)[role].requires_grad
            assert whole(sliced)[role].grad is None


@pytest.mark.parametrize("name", CASES)
def test_active_entries_have_the_plain_gradient_and_others_none(name: str) -> None:
    plain, sliced, x = prepared(CASES[name])
    expected, expected_input = backward(plain, x)
    found, found_input = backward(sliced, x)
    assert type(sliced) is not type(plain)
    assert plain_class(sliced) is type(plain)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if expected_input is not None:
        torch.testing.assert_close(found_input, expected_input, rtol=1e-12, atol=1e-12)
    check_gradients(CASES[name], plain, sliced)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if 0 not in case.shape])
def test_an_update_of_the_runs_updates_the_layer_there_and_nowhere_else(name: str) -> None:
    plain, sliced, x = prepared(CASES[name])
    optimizer = torch.optim.AdamW([leaf for _, leaves in active_runs(sliced).values() for leaf in leaves], lr=0.1, weight_decay=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        backward(sliced, x)
        optimizer.step()
    for role, cut in CASES[name].cuts.items():
        active = torch.zeros_like(whole(plain)[role], dtype=torch.bool)
        for run in cut.runs:
            cut.alias(active, run).fill_(value=True)
        moved = whole(sliced)[role] != whole(plain)[role]
        assert torch.equal(moved, active)
    plain.load_state_dict(sliced.state_dict())
    torch.testing.assert_close(backward(plain, x)[0], backward(sliced, x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["strided", "expanded", "channels last"])
@pytest.mark.parametrize("groups", [1, 2])
def test_layouts_of_inputs_and_gradients(kind: str, groups: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, 3, padding=1, groups=groups).double()
    x = torch.randn(BATCH, 4, 6, 5, dtype=torch.float64)
    if kind == "channels last":
        plain, x = plain.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if kind == "strided":
        x = x.transpose(2, 3)
    sliced = copy.deepcopy(plain)
    cuts = {"weight": rows((0, 3), (4, 6)), "bias": rows((0, 3), (4, 6))}
    slice_layer(sliced, cuts)
    outputs = [layer(x) for layer in (plain, sliced)]
    for output in outputs:
        (output.sum() if kind == "expanded" else output.square().sum()).backward()
    assert outputs[0].stride() == outputs[1].stride()
    check_gradients(Case(nn.Identity, (), cuts), plain, sliced)


@pytest.mark.parametrize("wants_input", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_convolutions_in_channels_last(wants_input: bool, bias: bool) -> None:
    """They multiply matrices instead of asking torch for a convolution backward."""
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, 1, bias=bias).double()
    x = torch.randn(BATCH, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    sliced = copy.deepcopy(plain)
    cuts = {role: rows((0, 3), (4, 6)) for role, _ in plain.named_parameters()}
    slice_layer(sliced, cuts)
    inputs = []
    for each in (plain, sliced):
        given = x.clone().requires_grad_(wants_input)
        with patch.object(kernels, "_convolution_backward", side_effect=AssertionError):
            (each(given) * torch.arange(8.0).sin()[:, None, None]).square().sum().backward()
        inputs.append(given.grad)
    check_gradients(Case(nn.Identity, (), cuts), plain, sliced)
    torch.testing.assert_close(inputs[0], inputs[1], rtol=1e-12, atol=1e-12)
    assert not wants_input or inputs[1].stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["linear: fused qkv", "convolution: circular", "convolution: parts of groups", "other: layer norm", "other: attention"]
)
def test_autocast_has_the_plain_dtypes_and_gradients(name: str, dtype: torch.dtype) -> None:
    plain, sliced, x = prepared(CASES[name])
    found = []
    for layer in (plain.float(), sliced.float()):
        leaf = x.float().requires_grad_()
        with torch.autocast("cpu", dtype):
            output = layer(leaf)
        output.float().square().sum().backward()
        found.append((output, leaf.grad))
    assert found[0][0].dtype == found[1][0].dtype
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-2, atol=1e-2)
    assert found[0][1] is not None
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-2, atol=1e-2)
    for role, (cut, leaves) in active_runs(sliced).items():
        for run, leaf in zip(cut.runs, leaves, strict=True):
            assert leaf.grad is not None
            assert leaf.grad.dtype == torch.float32
            torch.testing.assert_close(leaf.grad, cut.alias(whole(plain)[role].grad, run), rtol=2e-2, atol=2e-2)


def test_code_that_reads_a_weight_of_a_sliced_layer_trains_its_runs() -> None:
    """Some networks use `layer.weight` without calling the layer, `nn.MultiheadAttention` its own output projection among them."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(4, 2).double()
    sliced = copy.deepcopy(plain)
    slice_layer(sliced.out_proj, {"weight": rows((1, 3)), "bias": rows((0, 1))})
    x = torch.randn(5, BATCH, 4, dtype=torch.float64)
    for attention in (plain, sliced):
        attention(x, x, x)[0].square().sum().backward()
        functional.linear(x, attention.out_proj.weight).sum().backward()
    runs = active_runs(sliced.out_proj)
    torch.testing.assert_close(runs["weight"][1][0].grad, plain.out_proj.weight.grad[1:3])
    torch.testing.assert_close(runs["bias"][1][0].grad, plain.out_proj.bias.grad[:1])


def test_gradients_of_several_calls_add_up() -> None:
    plain, sliced, x = prepared(CASES["linear: scattered rows"])
    for layer in (plain, sliced):
        for _ in range(2):
            (layer(x).square().sum() + layer(2 * x).sum()).backward()
    check_gradients(CASES["linear: scattered rows"], plain, sliced)


def test_second_derivatives_are_refused() -> None:
    _, sliced, x = prepared(CASES["linear: rows"])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(sliced(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
