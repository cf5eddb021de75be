"""FLOPs of a step against torch's own counter, against closed forms, and against counting multiplications one by one."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fat_ray.engine.flops import FlopMeter, Flops
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.factors import ExactFormulas, Formulas
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.released import ReleasedFormulas
from fat_ray.freeze.sliced import Cut, slice_layer
from fat_ray.spec.run import GroupSpec

WIDTH, TOKENS, HEADS = 8, 16, 2
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Fused q, k, v and torch's scaled dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Layers, attention of two kinds, and products that no module makes."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.zeros(TOKENS, WIDTH))
        self.attention = Attention()
        self.encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.attention(self.patch(x).flatten(2).transpose(1, 2) + self.position))
        return self.head(torch.einsum("bnd,bmd->bnm", x, x) @ x)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Flatten(),
        nn.Linear(6 * 12 * 12, 5),
    )


def measured(model: nn.Module, x: Tensor = IMAGES, run: Callable[[Tensor], Tensor] | None = None) -> Flops:
    """What the meter says of one step."""
    meter = FlopMeter(model)
    with meter.watch((x,)):
        (run or model)(x).sum().backward()
    return meter.step


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def total(flops: Flops) -> float:
    return flops.forward + flops.input_gradient + flops.weight_gradient


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """Without fused kernels, of which torch's counter does not know that of the CPU."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def freeze(model: nn.Module, layers: set[str]) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in layers)
    return model


@pytest.mark.parametrize("frozen", [set(), {"0"}, {"0", "2"}, {"2", "5"}, {"0", "2", "3"}], ids=str)
def test_convolutions_cost_what_torch_counts(frozen: set[str]) -> None:
    model = freeze(convolutional(), frozen)
    flops = measured(model)
    assert total(flops) == counted(lambda: model(IMAGES).sum().backward())
    assert flops.forward == counted(lambda: model(IMAGES))


@pytest.mark.parametrize("frozen", [set(), {"patch"}, {"patch", "position", "attention"}, {"encoder"}, {"head"}], ids=str)
@pytest.mark.parametrize("bf16", [False, True])
def test_transformers_cost_what_torch_counts(frozen: set[str], bf16: bool, plain_attention: None) -> None:
    model = freeze(Transformer(), frozen)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(x)

    flops = measured(model, run=run)
    assert total(flops) == counted(lambda: run(IMAGES).sum().backward())
    assert flops.forward == counted(lambda: run(IMAGES))
    rows = 2 * 2 * TOKENS  # two per multiply-add, two images
    weights = {"patch": 48, "attention": 4 * WIDTH, "encoder": 8 * WIDTH, "head": 4}
    assert flops.weight_gradient == rows * WIDTH * sum(size for layer, size in weights.items() if layer not in frozen)


def test_fused_attention_on_the_cpu_costs_as_elsewhere() -> None:
    model, x = Attention(), torch.randn(2, TOKENS, WIDTH)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flops, shape = measured(model, x), (2, HEADS, TOKENS, WIDTH // HEADS)
    weights = 2 * 2 * TOKENS * 4 * WIDTH * WIDTH
    assert flops.forward == weights + sdpa_flop_count(shape, shape, shape)
    assert flops.weight_gradient == weights
    assert flops.input_gradient == weights / 4 + sdpa_backward_flop_count(shape, shape, shape, shape)  # qkv is the first layer


def multiplications(channels: tuple[int, int], kernel: int, groups: int, size: int, stride: int) -> int:
    """Of an unpadded 2-D convolution with one image, by walking through it."""
    inputs, outputs = channels
    positions = range(0, size - kernel + 1, stride)
    return sum(
        channel // (inputs // groups) == output // (outputs // groups)
        for output, _, _, channel, _, _ in itertools.product(
            range(outputs), positions, positions, range(inputs), range(kernel), range(kernel)
        )
    )


@pytest.mark.parametrize(("channels", "groups", "stride"), [((8, 8), 8, 1), ((8, 4), 2, 2), ((4, 8), 4, 1), ((4, 6), 1, 1)])
def test_grouped_convolutions_cost_each_multiplication_three_times(channels: tuple[int, int], groups: int, stride: int) -> None:
    """Not compared with torch's counter, which ignores groups in the weight gradient (torch 2.13)."""
    model = nn.Sequential(nn.Conv2d(2, channels[0], 1), nn.Conv2d(*channels, 3, stride, groups=groups))
    first, second = 2 * 2 * channels[0] * 81, 2 * multiplications(channels, 3, groups, 9, stride)
    assert measured(model, torch.randn(1, 2, 9, 9)) == Flops(first + second, second, first + second)


def test_a_grouped_transposed_convolution_costs_as_its_mirror() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2))
    each = 2 * multiplications((8, 4), 3, 2, 11, 1)
    assert measured(model, torch.randn(1, 4, 9, 9)) == Flops(each, 0, each)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dim", [0, 1])
def test_sliced_layers_compute_the_weight_gradient_of_what_is_active(dim: int, bf16: bool) -> None:
    """Rows 2 to 4 and 5 of 8, or columns of 8: three eighths; what is cut in no layer costs all."""

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Flatten(2), nn.Linear(196, 8), nn.Linear(8, 8))
    whole = measured(model, run=step)
    convolution, linear = 2 * 2 * 8 * 8 * 9 * 196, 2 * 2 * 8 * 8 * 8
    for layer in (model[1], model[4]):
        slice_layer(layer, {"weight": Cut(dim, ((2, 4), (5, 6)))})
    flops = measured(model, run=step)
    assert (flops.forward, flops.input_gradient) == (whole.forward, whole.input_gradient)
    assert whole.weight_gradient - flops.weight_gradient == (convolution + linear) * 5 / 8
    assert total(flops) == counted(lambda: step(IMAGES).sum().backward())


def test_pointwise_convolutions_in_channels_last_and_small_depthwise_ones_cost_what_they_compute() -> None:
    """The former the runs alone, by products of matrices; the latter all of it, in one go."""
    x = IMAGES.contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8)).to(memory_format=torch.channels_last)
    whole = measured(model, x)
    for layer in model[1:]:
        slice_layer(layer, {"weight": Cut(0, ((2, 4), (5, 6)))})
    flops = measured(model, x)
    assert (flops.forward, flops.input_gradient) == (whole.forward, whole.input_gradient)
    assert whole.weight_gradient - flops.weight_gradient == 2 * 2 * 8 * 8 * 256 * 5 / 8


def test_the_generic_form_of_slicing_computes_the_whole_weight_gradient() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 3))
    whole = measured(model)
    slice_layer(model[1], {"weight": Cut(0, ((2, 4),))})
    assert measured(model) == whole


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sliced", [False, True])
def test_what_checkpointing_computes_again_counts_as_forward(reentrant: bool, sliced: bool) -> None:
    stem, block = nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU())
    if sliced:
        slice_layer(block[2], {"weight": Cut(0, ((0, 4),))})
    model, x = nn.Sequential(stem, block), torch.randn(4, WIDTH)
    plain, each = measured(model, x), 2 * 4 * WIDTH * WIDTH
    again = measured(model, x, lambda x: checkpoint(block, stem(x), use_reentrant=reentrant))
    assert again == Flops(plain.forward + 2 * each, plain.input_gradient, plain.weight_gradient)


@pytest.mark.parametrize("without_autograd", [torch.no_grad, torch.inference_mode])
def test_a_prefix_outside_autograd_costs_its_forward(without_autograd: Callable[[], object], plain_attention: None) -> None:
    prefix, head, x = Attention(), nn.Linear(WIDTH, 4), torch.randn(2, TOKENS, WIDTH)

    def run(x: Tensor) -> Tensor:
        with without_autograd():
            hidden = prefix(x)
        return head(hidden.clone())

    last = 2 * 2 * TOKENS * WIDTH * 4
    assert measured(nn.Sequential(prefix, head), x, run) == Flops(counted(lambda: prefix(x)) + last, 0, last)


@pytest.mark.parametrize("formulas", [ExactFormulas(), ReleasedFormulas()], ids=["exact", "released"])
def test_fisher_statistics_are_not_training(formulas: Formulas) -> None:
    model = nn.Sequential(convolutional(), nn.Linear(5, 5))
    plain = measured(model)
    collector = Collector(model, build_groups(model, GroupSpec()), formulas, halves=True)
    collector.arm({"0.0", "0.2", "0.5", "1"}, Share(2))
    assert measured(model) == plain
    assert collector.take()


def test_watching_changes_no_bit() -> None:
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Transformer()
        if watched:
            measured(model)
        else:
            model(IMAGES).sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_step_is_watched_for_each_shape_and_after_each_change() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    meter, small = FlopMeter(model), IMAGES[..., :8]

    def step(x: Tensor) -> Flops:
        with meter.watch((x,)):
            model(x).sum().backward()
        return meter.step

    large, half = step(IMAGES), step(small)
    assert (half.forward, half.weight_gradient) == (large.forward / 2, large.weight_gradient / 2)
    assert step(IMAGES) == large
    freeze(model, {"0"})
    meter.forget()
    assert (step(IMAGES).input_gradient, step(IMAGES).forward) == (0, large.forward)


def test_nothing_stays_behind_when_a_step_breaks() -> None:
    meter, model = FlopMeter(nn.Linear(2, 2)), nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="shapes"), meter.watch((IMAGES,)):
        model(torch.zeros(1, 2))
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert meter.step == Flops()


def layers(model: nn.Module, x: Tensor = IMAGES, run: Callable[[Tensor], Tensor] | None = None) -> list[tuple[str | None, float]]:
    meter = FlopMeter(model)
    with meter.watch((x,)):
        (run or model)(x).sum().backward()
    assert sum(flops for _, flops in meter.layers) == meter.step.forward
    return meter.layers


@pytest.mark.parametrize("bf16", [False, True])
def test_forwards_are_told_layer_by_layer_in_the_order_of_first_use(bf16: bool, plain_attention: None) -> None:
    model = Transformer()

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(x)

    rows = 2 * 2 * TOKENS * WIDTH
    scores = 2 * 2 * 2 * TOKENS * TOKENS * WIDTH  # queries with keys, and weights with values
    assert layers(model, run=run) == [
        ("patch", rows * 48),
        ("", 0),
        ("attention.qkv", rows * 3 * WIDTH),
        (None, scores),
        ("attention.proj", rows * WIDTH),
        ("encoder.self_attn", rows * 3 * WIDTH),
        (None, scores),
        ("encoder.self_attn.out_proj", rows * WIDTH),
        ("encoder.norm1", 0),
        ("encoder.linear1", rows * 2 * WIDTH),
        ("encoder.linear2", rows * 2 * WIDTH),
        ("encoder.norm2", 0),
        (None, scores),
        ("head.parametrizations.weight", rows * 4),
        ("head", 0),
    ]


class Twice(nn.Module):
    """A layer that is used again after another one, and its weight by a second module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.tied = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.second(self.first(x)))


def test_a_layer_that_is_used_again_keeps_its_first_place() -> None:
    assert layers(Twice(), torch.randn(2, 8)) == [("first", 2 * 256), ("second", 256), ("tied", 0)]


def test_a_computed_again_forward_keeps_its_places() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    again = layers(model, torch.randn(2, 8), run=lambda x: checkpoint(model, x, use_reentrant=False))
    assert again == [("0", 512), ("1", 256)]  # torch computes again what it must
