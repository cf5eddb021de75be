"""Kronecker factors against their definition, by brute force in float64: one-hot kernels, explicit sums, autograd."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
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
    "conv2d": Case(lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (4, 7, 8)),
    "conv2d same": Case(lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), (4, 7, 8)),
    "conv2d valid": Case(lambda: nn.Conv2d(4, 6, 3, padding="valid"), (4, 7, 8)),
    "conv2d reflect": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 7, 8)),
    "conv2d replicate": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (4, 7, 8)),
    "conv2d circular": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 7, 8)),
    "conv2d grouped": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 7, 8)),
    "conv2d depthwise": Case(lambda: nn.Conv2d(4, 8, 5, padding=2, groups=4, bias=False), (4, 7, 8)),
    "conv3d": Case(lambda: nn.Conv3d(2, 4, 2, stride=2), (2, 4, 5, 6)),
    "transposed 1d": Case(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5)),
    "transposed 2d": Case(lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, dilation=(2, 1)), (4, 5, 6)),
    "transposed 3d": Case(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 3, 3)),
    "layer norm": Case(lambda: nn.LayerNorm(5), (3, 5)),
    "layer norm over two dimensions": Case(lambda: nn.LayerNorm([3, 5]), (3, 5)),
    "rms norm": Case(lambda: nn.RMSNorm(5, eps=1e-6), (3, 5)),
    "rms norm, default eps": Case(lambda: nn.RMSNorm(5), (3, 5)),
    "group norm": Case(lambda: nn.GroupNorm(2, 6), (6, 4)),
    "batch norm 1d": Case(lambda: nn.BatchNorm1d(3), (3, 5)),
    "batch norm 2d": Case(lambda: nn.BatchNorm2d(3), (3, 5, 4)),
    "embedding": Case(lambda: nn.Embedding(9, 5), (6,), vocabulary=9),
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


def per_position_gradients(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over examples and positions of the outer product of squares, entry by entry of the weight, in float64.

    A weight entry's gradient is a sum over positions p of h(p)·s(p); the Kronecker Fisher is mean h(p)² times mean s(p)². Both means are
    read off the layer itself: h by weights that are one-hot, s as given.
    """
    layer = layer.double()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    result = torch.zeros(weight.shape, dtype=torch.float64)
    for index in range(weight.numel()):
        one_hot = torch.zeros(weight.numel(), dtype=torch.float64)
        one_hot[index] = 1
        result.view(-1)[index] = mean_square_of_both(layer, one_hot.view(weight.shape), x, y.double())
    return result


def mean_square_of_both(layer: nn.Module, one_hot: Tensor, x: Tensor, y: Tensor) -> Tensor:
    parameters = {"weight": one_hot} | ({"bias": torch.zeros_like(layer.bias)} if getattr(layer, "bias", None) is not None else {})
    touched = torch.func.functional_call(layer, parameters, (x if x.dtype == torch.long else x.double(),))
    channel = -1 if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)) else 1
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        channel_index = one_hot.flatten().argmax()
        flat_h, flat_s = touched.reshape(-1, one_hot.numel()), y.reshape(-1, one_hot.numel())
        return flat_h[:, channel_index].square().mean() * flat_s[:, channel_index].square().mean()
    output = one_hot.shape.index(max(one_hot.shape)) if isinstance(layer, nn.BatchNorm2d) else 0
    row = int(one_hot.reshape(one_hot.shape[0], -1).abs().sum(1).argmax()) if output == 0 else 0
    if isinstance(layer, nn.Embedding):
        column = int(one_hot.abs().sum(0).argmax())
        return touched.select(channel, column).square().mean() * y.select(channel, column).square().mean()
    return touched.select(channel, row).square().mean() * y.select(channel, row).square().mean()


TRANSPOSED = [name for name in CASES if name.startswith("transposed")]


@pytest.mark.parametrize("name", [name for name in CASES if name not in TRANSPOSED])
def test_weight_fisher_equals_its_definition(name: str) -> None:
    model, x, y = prepared(name)
    (state,) = collect(model, weighted, x, y)
    expected = per_position_gradients(model[0], x, y)  # type: ignore[index]
    found = fisher(model.float(), state, "0.weight").reshape(expected.shape)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution_is_a_convolution_read_backwards(name: str) -> None:
    """Its weight gradient is that of a convolution from the output's gradient to the input: the factors change places."""
    model, x, y = prepared(name)
    layer = model[0]  # type: ignore[index]
    assert isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[x.ndim - 2]
    expected = torch.zeros_like(layer.weight)
    for row in range(layer.weight.shape[0]):
        for rest in range(layer.weight[0].numel()):
            one_hot = torch.zeros_like(layer.weight)
            one_hot[row].view(-1)[rest] = 1
            seen = convolve(y, one_hot, None, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[operator]
            expected[row].view(-1)[rest] = x[:, row].square().mean() * seen[:, row].square().mean()
    (state,) = collect(model, weighted, x, y)
    torch.testing.assert_close(fisher(model, state, "0.weight").reshape(expected.shape), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if getattr(case.make(), "bias", None) is not None])
def test_bias_fisher_is_the_mean_square_of_the_output_gradient(name: str) -> None:
    model, x, y = prepared(name)
    (state,) = collect(model, weighted, x, y)
    bias = model[0].bias  # type: ignore[index]
    if "layer norm" in name:
        expected = y.reshape(-1, bias.numel()).square().mean(0)
    else:
        channel = y.ndim - 1 if name.startswith("linear") else 1
        expected = y.square().mean(dim=[dim for dim in range(y.ndim) if dim != channel])
    torch.testing.assert_close(fisher(model, state, "0.bias"), expected.flatten(), rtol=1e-4, atol=1e-7)


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
