"""Kronecker factors against their definition, by brute force in float64: one autograd call per position, explicit means."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fat_ray.fisher.collector import Collector, Share, covered_layers
from fat_ray.fisher.factors import ExactFormulas
from fat_ray.fisher.flat import NOTHING, Flat
from fat_ray.fisher.groups import Group, build_groups
from fat_ray.fisher.state import State, group_values
from tests.support.factors import WHOLE, FactorState, collect, states

BATCH = 4


@dataclass(frozen=True)
class Case:
    """A layer, and the shape of its input without the batch dimension; integers for an embedding."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0


CASES = {
    "linear": Case(lambda: nn.Linear(5, 7), (5,)),
    "linear on tokens": Case(lambda: nn.Linear(5, 7, bias=False), (3, 5)),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
    "conv1d circular": Case(lambda: nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"), (4, 9)),
    "conv2d": Case(lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (4, 7, 8)),
    "conv2d pointwise": Case(lambda: nn.Conv2d(4, 6, 1), (4, 3, 2)),
    "conv2d pointwise, strided": Case(lambda: nn.Conv2d(4, 6, 1, stride=2), (4, 5, 4)),
    "conv2d same": Case(lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), (4, 7, 8)),
    "conv2d valid": Case(lambda: nn.Conv2d(4, 6, 3, padding="valid"), (4, 7, 8)),
    "conv2d reflect": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 7, 8)),
    "conv2d replicate": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (4, 7, 8)),
    "conv2d circular": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 7, 8)),
    "conv2d grouped": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 7, 8)),
    "conv2d depthwise": Case(lambda: nn.Conv2d(4, 8, 5, padding=2, groups=4, bias=False), (4, 7, 8)),
    "conv3d": Case(lambda: nn.Conv3d(2, 4, 2, stride=2), (2, 4, 5, 6)),
    "conv3d replicate": Case(lambda: nn.Conv3d(2, 4, (1, 3, 2), padding=(0, 1, 1), padding_mode="replicate"), (2, 2, 3, 3)),
    "transposed 1d": Case(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5)),
    "transposed 2d": Case(lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, dilation=(2, 1)), (4, 5, 6)),
    "transposed 2d, long end": Case(lambda: nn.ConvTranspose2d(2, 3, 2, dilation=3, padding=1, output_padding=2), (2, 3, 4)),
    "transposed 3d": Case(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 3, 3)),
    "layer norm": Case(lambda: nn.LayerNorm(5), (3, 5)),
    "layer norm over two dimensions": Case(lambda: nn.LayerNorm([3, 5]), (2, 3, 5)),
    "rms norm": Case(lambda: nn.RMSNorm(5, eps=1e-6), (3, 5)),
    "rms norm, default eps": Case(lambda: nn.RMSNorm(5), (3, 5)),
    "group norm": Case(lambda: nn.GroupNorm(2, 6), (6, 4)),
    "batch norm 1d": Case(lambda: nn.BatchNorm1d(3), (3,)),
    "batch norm 1d on sequences": Case(lambda: nn.BatchNorm1d(3), (3, 5)),
    "batch norm 2d": Case(lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 5, 4)),
    "batch norm 3d": Case(lambda: nn.BatchNorm3d(3), (3, 2, 3, 2)),
    "sync batch norm": Case(lambda: nn.SyncBatchNorm(3), (3, 5, 4)),
    "embedding": Case(lambda: nn.Embedding(9, 5), (6,), vocabulary=9),
    "embedding that pads": Case(lambda: nn.Embedding(9, 5, padding_idx=-2), (6,), vocabulary=9),
}


def inputs(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, *case.shape)
    return torch.randint(0, case.vocabulary, shape, generator=generator) if case.vocabulary else torch.randn(shape, generator=generator)


def weighted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A loss whose gradient with respect to the output of each example is its row of y."""
    return (model(x) * y).sum() / len(x)


def prepared(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    layer, x = CASES[name].make(), inputs(CASES[name])
    return nn.Sequential(layer), x, torch.randn_like(layer(x).detach())


FEATURES_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def by_position(layer: nn.Module, values: Tensor) -> Tensor:
    """Outputs, or gradients of outputs, as (positions, *features)."""
    if isinstance(layer, FEATURES_LAST):
        shape = layer.normalized_shape if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) else values.shape[-1:]
        return values.reshape(-1, *shape)
    return values.movedim(1, -1).flatten(0, -2)


def seen_by_entries(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Per entry of each parameter, the mean over positions of the square of what it is multiplied by there, which is what autograd says."""
    parameters = dict(layer.named_parameters())
    total = {role: torch.zeros_like(parameter) for role, parameter in parameters.items()}
    outputs = by_position(layer, layer(x))
    for position in outputs:  # each row of a weight reaches one feature only
        for role, h in zip(parameters, torch.autograd.grad(position.sum(), parameters.values(), retain_graph=True), strict=True):
            total[role] += h.square() / len(outputs)
    return total


def defined(layer: nn.Module, x: Tensor, s: Tensor) -> dict[str, Tensor]:
    """The Fisher of each parameter by definition: the mean square of what its entries see, times that of the gradient where they reach."""
    rows = by_position(layer, s).square().mean(0)
    if isinstance(layer, TRANSPOSED):
        return {"weight": defined_transposed(layer, x, s)} | ({"bias": rows} if layer.bias is not None else {})
    found = {}
    for role, h in seen_by_entries(layer, x).items():
        over_columns = h.ndim > rows.ndim and not isinstance(layer, nn.Embedding)
        found[role] = h * (rows.reshape(-1, *(1,) * (h.ndim - 1)) if over_columns else rows)
    return found


def defined_transposed(layer: Any, x: Tensor, s: Tensor) -> Tensor:
    """Its positions are those of the input: what stands at one of them meets the gradient under the kernel there."""
    gradients = torch.zeros_like(layer.weight)
    places = x[:1, :1].expand(len(x), 1, *x.shape[2:]).nonzero()
    for example, _, *where in places.tolist():
        alone = torch.zeros_like(x)
        alone[(example, slice(None), *where)] = 1
        gradients += torch.autograd.grad((layer(alone) * s).sum(), layer.weight)[0].square() / len(places)
    return gradients * by_position(nn.Identity(), x).square().mean(0).reshape(-1, *(1,) * (layer.weight.ndim - 1))


def assert_defined(model: nn.Module, x: Tensor, s: Tensor) -> None:
    (state,) = collect(model, weighted, x, s)
    layer = model.double()[0]  # type: ignore[operator]
    expected = defined(layer, x if x.dtype == torch.long else x.double(), s.double())
    for role, values in expected.items():
        found = fisher(model, state, f"0.{role}").reshape(values.shape)
        torch.testing.assert_close(found, values.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_fisher_equals_its_definition(name: str) -> None:
    assert_defined(*prepared(name))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Any geometry that torch accepts, and the shape of an input for it."""
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())

    def sizes(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    kernel, stride, dilation, groups = sizes(1, 3), sizes(1, 3), sizes(1, 2), draw(st.integers(1, 2))
    padding: Any = tuple(min(wanted, size * spread // 2) for wanted, size, spread in zip(sizes(0, 2), kernel, dilation, strict=True))
    image = tuple(spread * (size - 1) + 1 + more for size, spread, more in zip(kernel, dilation, sizes(1, 3), strict=True))
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "bias": draw(st.booleans()), "padding": padding}
    if transposed:
        options["output_padding"] = tuple(draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True))
        image = sizes(2, 3)
        options["padding"] = tuple(min(pad, (size - 1) * spread // 2) for pad, size, spread in zip(padding, kernel, dilation, strict=True))
        made = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        word = draw(st.sampled_from([None, "same", "valid"]))
        if word:
            options |= {"padding": word, "stride": (1,) * dims}
        made = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]  # type: ignore[assignment]
    return made(2 * groups, 2 * groups, kernel, **options), (2 * groups, *image)


@pytest.mark.timeout(120)
@settings(max_examples=150, deadline=None)
@given(convolutions(), st.booleans())
def test_convolutions_of_all_geometries_equal_their_definition(drawn: tuple[nn.Module, tuple[int, ...]], channels_last: bool) -> None:
    layer, shape = drawn
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=generator)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    s = torch.randn(layer(x).shape, generator=generator)
    assert_defined(nn.Sequential(layer), x, s)


def fisher(model: nn.Module, state: FactorState, parameter: str) -> Tensor:
    """Values of one whole parameter under a state."""
    for group in build_groups(model, WHOLE):
        for member in group.members:
            if member.parameter == parameter:
                alone = Group(group.name, group.layer, group.kind, (member,))
                return torch.from_numpy(group_values(alone, State(Flat.of(state), NOTHING), factored=True))
    raise AssertionError(parameter)


BATCH_FREE = [name for name in CASES if "batch norm" not in name]


@pytest.mark.parametrize("name", BATCH_FREE)
@pytest.mark.parametrize("halves", [False, True])
def test_factors_do_not_depend_on_micro_batches(name: str, halves: bool) -> None:
    model, x, y = prepared(name)
    whole, split = (collect(model, weighted, x, y, parts=parts, halves=halves) for parts in (1, 4))
    for one, other in zip(whole, split, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-8)


def test_halves_are_those_of_the_batch() -> None:
    model, x, y = prepared("conv2d")
    halves = collect(model, weighted, x, y, halves=True)
    for half, part in zip(halves, (slice(0, 2), slice(2, 4)), strict=True):
        (alone,) = collect(model, weighted, x[part], y[part])
        for key, value in alone.items():
            torch.testing.assert_close(half[key], value, rtol=1e-4, atol=1e-8)


class Mixed(nn.Module):
    """A network in which hooks are easily fooled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.mlp = nn.Sequential(nn.Linear(4 * 36, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.relu(self.conv(x)))

    def tail(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x.flatten(1))
        return out


class Checkpointed(Mixed):
    """The same with activation checkpointing."""

    reentrant = False

    def tail(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(super().tail, x, use_reentrant=self.reentrant)  # type: ignore[assignment]
        return out


class Reentrant(Checkpointed):
    """And with its older kind."""

    reentrant = True


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y)


def mixed_batch(kind: type[Mixed] = Mixed) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = kind()
    return model, torch.randn(BATCH, 1, 6, 6), torch.arange(BATCH) % 3


def assert_same(found: FactorState, expected: FactorState, rtol: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=rtol, atol=1e-9)


def plain() -> FactorState:
    (state,) = collect(*reorder(mixed_batch()))
    return state


def reorder(batch: tuple[nn.Module, Tensor, Tensor]) -> tuple[nn.Module, Callable[[nn.Module, Tensor, Tensor], Tensor], Tensor, Tensor]:
    model, x, y = batch
    return model, classified, x, y


class OutOfPlace(Mixed):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()


def test_relu_in_place() -> None:
    (state,) = collect(*reorder(mixed_batch(OutOfPlace)))
    assert_same(state, plain(), rtol=1e-7)


@pytest.mark.parametrize("kind", [Checkpointed, Reentrant])
def test_activation_checkpointing(kind: type[Mixed]) -> None:
    (state,) = collect(*reorder(mixed_batch(kind)))
    assert_same(state, plain())


def test_gradient_accumulation() -> None:
    model, x, y = mixed_batch()
    (state,) = collect(model, classified, x, y, parts=2)
    assert_same(state, plain())


def test_loss_scaling_is_divided_out() -> None:
    model, x, y = mixed_batch()
    collector = Collector(model, build_groups(model, WHOLE), ExactFormulas())
    collector.arm(list(collector.layers), Share(BATCH, loss_scale=2.0**16))
    (classified(model, x, y) * 2.0**16).backward()
    (state,) = states(collector.take(), collector.layers, ExactFormulas(), (1,))
    assert_same(state, plain())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_the_plain_run_to_its_precision(dtype: torch.dtype) -> None:
    model, x, y = mixed_batch()
    collector = Collector(model, build_groups(model, WHOLE), ExactFormulas())
    scale = 2.0**10
    collector.arm(list(collector.layers), Share(BATCH, loss_scale=scale))
    with torch.autocast("cpu", dtype):
        loss = classified(model, x, y)
    (loss * scale).backward()
    (state,) = states(collector.take(), collector.layers, ExactFormulas(), (1,))
    expected = plain()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0.15, atol=float(0.03 * value.max()))


def test_gradient_scaler() -> None:
    """As a loop with one has it: the scale is that of the scaler, and statistics are taken before it unscales."""
    model, x, y = mixed_batch()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    collector = Collector(model, build_groups(model, WHOLE), ExactFormulas())
    collector.arm(list(collector.layers), Share(BATCH, loss_scale=scaler.get_scale()))
    scaler.scale(classified(model, x, y)).backward()  # type: ignore[no-untyped-call]
    (state,) = states(collector.take(), collector.layers, ExactFormulas(), (1,))
    scaler.step(optimizer)
    scaler.update()
    assert_same(state, plain(), rtol=1e-6)


def test_clipping_after_the_backward_changes_nothing() -> None:
    model, x, y = mixed_batch()
    collector = Collector(model, build_groups(model, WHOLE), ExactFormulas())
    collector.arm(list(collector.layers), Share(BATCH))
    classified(model, x, y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    (state,) = states(collector.take(), collector.layers, ExactFormulas(), (1,))
    assert_same(state, plain(), rtol=1e-7)


def test_evaluation_passes_leave_no_trace() -> None:
    model, x, y = mixed_batch()
    collector = Collector(model, build_groups(model, WHOLE), ExactFormulas())
    collector.arm(list(collector.layers), Share(BATCH))
    with torch.no_grad():
        model(100 * x)
    model.eval()
    classified(model, 100 * x, y).backward()  # with gradients on
    model.train()
    classified(model, x, y).backward()
    (state,) = states(collector.take(), collector.layers, ExactFormulas(), (1,))
    assert_same(state, plain(), rtol=1e-7)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.timeout(120)
def test_a_compiled_model_is_watched_too() -> None:
    model, x, y = mixed_batch()
    compiled = torch.compile(model, backend="aot_eager")
    classified(compiled, x, y).backward()  # compiled before anything is armed
    collector = Collector(model, build_groups(model, WHOLE), ExactFormulas())
    collector.arm(list(collector.layers), Share(BATCH))
    classified(compiled, x, y).backward()
    (state,) = states(collector.take(), collector.layers, ExactFormulas(), (1,))
    assert_same(state, plain(), rtol=1e-5)


def test_a_reused_module_sums_over_its_calls() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(3, 3)), torch.randn(BATCH, 3), torch.randn(BATCH, 3)
    (state,) = collect(model, lambda m, a, b: ((m(a) + m(2 * a)) * b).sum() / len(a), x, y)
    torch.testing.assert_close(torch.from_numpy(state["0", "column"]).float(), (x.square() * 2.5).mean(0, keepdim=True))
    torch.testing.assert_close(torch.from_numpy(state["0", "row"]).float(), y.square().mean(0))


def test_calls_whose_output_the_loss_does_not_use_leave_no_trace() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(3, 3)), torch.randn(BATCH, 3), torch.randn(BATCH, 3)

    def loss(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        m(100 * a)
        return weighted(m, a, b)

    (state,), (expected,) = (collect(model, used, x, y) for used in (loss, weighted))
    assert_same(state, expected, rtol=1e-7)


def test_inputs_by_keyword() -> None:
    class ByKeyword(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](input=x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    layer, x, y = nn.Linear(3, 3), torch.randn(BATCH, 3), torch.randn(BATCH, 3)
    (state,), (expected,) = (collect(kind(layer), weighted, x, y) for kind in (ByKeyword, nn.Sequential))
    assert_same(state, expected, rtol=1e-7)


class SequenceFirst(nn.Sequential):
    """Computes on (tokens, examples, width), as torch's recurrent and attention layers do by default."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]


def test_halves_are_those_of_the_batch_where_examples_come_second() -> None:
    torch.manual_seed(0)
    layer, x, y = nn.Linear(3, 2), torch.randn(BATCH, 7, 3), torch.randn(BATCH, 7, 2)
    found, expected = (collect(kind(layer), weighted, x, y, halves=True) for kind in (SequenceFirst, nn.Sequential))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, rtol=1e-6)


class Positions(nn.Module):
    """Adds position embeddings, which are looked up once for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(5, 3)
        self.tail = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(x + self.positions(torch.arange(5)[None]))  # type: ignore[no-any-return]


def test_a_layer_called_once_for_all_examples_counts_in_both_halves() -> None:
    torch.manual_seed(0)
    model, x, y = Positions(), torch.randn(BATCH, 5, 3), torch.randn(BATCH, 5, 3)
    (whole,) = collect(model, weighted, x, y)
    first, second = collect(model, weighted, x, y, halves=True)
    for key in [key for key in whole if key[0] == "positions"]:
        torch.testing.assert_close(first[key], whole[key])
        torch.testing.assert_close(second[key], whole[key])
    assert (first["tail", "row"] != second["tail", "row"]).any()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight
        self.tail = nn.Linear(7, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.tail(self.head(self.attention(x, x, x)[0]).mean(1))  # type: ignore[no-any-return]


def test_weights_used_behind_a_module_s_back_have_no_factors() -> None:
    model = Attention()
    covered = covered_layers(model, build_groups(model, WHOLE), ExactFormulas())
    assert set(covered) == {"tail"}  # the embedding is tied, the attention's projections are used without a call


def test_subclasses_count_unless_they_compute_something_else() -> None:
    class Renamed(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Renamed(3, 3), Doubled(3, 3))
    assert set(covered_layers(model, build_groups(model, WHOLE), ExactFormulas())) == {"0"}


@pytest.mark.parametrize("name", ["conv2d", "conv2d depthwise", "conv2d reflect", "transposed 2d", "batch norm 2d"])
def test_factors_do_not_depend_on_the_layout_in_memory(name: str) -> None:
    model, x, y = prepared(name)
    (plain_state,) = collect(model, weighted, x, y)
    (last,) = collect(model, weighted, x.to(memory_format=torch.channels_last), y.to(memory_format=torch.channels_last))
    assert_same(last, plain_state)
