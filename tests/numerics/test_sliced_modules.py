"""A sliced network under what networks meet: copies, moves, checkpoints, compilation, hooks, averaging; and which layers can be sliced."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.factors import ExactFormulas
from fat_ray.fisher.groups import build_groups
from fat_ray.freeze.sliced import ActiveRuns, Cut, active_runs, is_sliceable, plain_class, restore_layer, slice_layer, without_runs
from fat_ray.spec.run import GroupSpec

CUTS = {
    "convolution": {"weight": Cut(0, ((1, 2), (4, 6))), "bias": Cut(0, ((1, 2), (4, 6)))},
    "norm": {"weight": Cut(0, ((0, 2),)), "bias": Cut(0, ((3, 4),))},
    "linear": {"weight": Cut(1, ((2, 5),)), "bias": Cut(0, ((1, 3),))},
    "attention": {"in_proj_weight": Cut(0, ((0, 3), (5, 7)))},
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.linear = nn.Linear(6, 4)
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.linear(self.norm(self.convolution(x).relu()).movedim(2, 0))
        return self.attention(tokens, tokens, tokens)[0]


def register(model: nn.Module) -> None:
    """As the freezer does: all runs are parameters of the root's last child."""
    runs = {
        f"{layer}.{role}.{run}": leaf
        for layer, module in model.named_modules()
        for role, (cut, leaves) in active_runs(module).items()
        for run, leaf in zip(cut.runs, leaves, strict=True)
    }
    if not hasattr(model, "active_runs"):
        model.add_module("active_runs", ActiveRuns())
    model.active_runs.replace(runs)


def networks() -> tuple[nn.Module, nn.Module]:
    """A network and its sliced copy."""
    torch.manual_seed(0)
    plain = Network().double()
    sliced = copy.deepcopy(plain)
    for layer, cuts in CUTS.items():
        slice_layer(sliced.get_submodule(layer), cuts)
    register(sliced)
    return plain, sliced


def batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(2), dtype=dtype)


def train(model: nn.Module, forward: Callable[[Tensor], Tensor] | None = None, dtype: torch.dtype = torch.float64) -> None:
    model.zero_grad()
    (model if forward is None else forward)(batch(dtype)).square().sum().backward()


def leaves_of(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Each run with the entries of the whole parameter that it stands for."""
    found = []
    for module in model.modules():
        for role, (cut, leaves) in active_runs(module).items():
            whole = dict(module.named_parameters(recurse=False))[role]
            found += [(leaf, cut.alias(whole, run)) for leaf, run in zip(leaves, cut.runs, strict=True)]
    return found


def check_aliases(model: nn.Module, *, registered: bool = True) -> None:
    """Runs are the registered parameters, live in the memory of their layers, and writing to them is noticed by autograd."""
    found = leaves_of(model)
    assert [id(leaf) for leaf in model.active_runs.parameters()] == [id(leaf) for leaf, _ in found if registered]
    assert len(found) == 10
    for leaf, alias in found:
        assert leaf.requires_grad
        assert leaf.is_leaf
        assert (leaf.data_ptr(), leaf.stride(), leaf.shape, leaf.dtype) == (alias.data_ptr(), alias.stride(), alias.shape, alias.dtype)
        before = alias._version
        with torch.no_grad():
            leaf.add_(0.0)
        assert alias._version == before + 1


def check_gradients(plain: nn.Module, sliced: nn.Module, tolerance: float = 1e-12) -> None:
    for layer, cuts in CUTS.items():
        whole = dict(plain.get_submodule(layer).named_parameters(recurse=False))
        for role, (cut, leaves) in active_runs(sliced.get_submodule(layer)).items():
            assert cut == cuts[role]
            for leaf, run in zip(leaves, cut.runs, strict=True):
                assert leaf.grad is not None
                torch.testing.assert_close(leaf.grad, cut.alias(whole[role].grad, run), rtol=tolerance, atol=tolerance)


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_file])
def test_copies_train_by_themselves(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    plain, sliced = networks()
    copied = duplicate(sliced)
    assert {leaf.untyped_storage().data_ptr() for leaf, _ in leaves_of(copied)}.isdisjoint(
        leaf.untyped_storage().data_ptr() for leaf, _ in leaves_of(sliced)
    )
    for model in (sliced, copied):
        check_aliases(model, registered=model is sliced or duplicate is not copy.deepcopy)
        train(model)
        train(plain)
        check_gradients(plain, model)
    assert str(copied) == str(sliced)
    assert plain_class(copied.norm) is nn.BatchNorm1d


def test_a_shallow_copy_shares_the_runs() -> None:
    plain, sliced = networks()
    twin = copy.copy(sliced.linear)
    twin(torch.ones(2, 6, dtype=torch.float64)).sum().backward()
    assert all(leaf.grad is not None for _, leaves in active_runs(sliced.linear).values() for leaf in leaves)
    check_aliases(sliced)
    assert twin is not sliced.linear
    assert type(twin) is type(sliced.linear)
    assert type(plain.linear) is nn.Linear


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("move", [nn.Module.float, nn.Module.half, lambda m: m.to(torch.bfloat16), nn.Module.cpu])
def test_moved_runs_keep_identity_and_gradients(move: Callable[[nn.Module], nn.Module], *, overwrite: bool) -> None:
    _, sliced = networks()
    train(sliced)
    before = [(leaf, leaf.grad.clone()) for leaf in sliced.active_runs.parameters()]
    torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    try:
        move(sliced)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    check_aliases(sliced)
    for (leaf, gradient), now in zip(before, sliced.active_runs.parameters(), strict=True):
        assert now is leaf
        assert torch.equal(leaf.grad, gradient.to(leaf.dtype))
        assert leaf.dtype == sliced.linear._parameters["weight"].dtype


def test_double_after_training_in_single_trains_on() -> None:
    plain, sliced = networks()
    for model in (plain, sliced):
        model.float()
        train(model, dtype=torch.float32)
        model.double()
        train(model)
    check_aliases(sliced)
    check_gradients(plain, sliced)


def test_a_checkpoint_is_that_of_the_plain_model() -> None:
    plain, sliced = networks()
    optimizer = torch.optim.SGD(sliced.active_runs.parameters(), lr=0.1)
    train(sliced)
    optimizer.step()
    state = sliced.state_dict()
    assert list(state) == list(plain.state_dict())
    assert not torch.equal(state["linear.weight"], plain.state_dict()["linear.weight"])
    assert all(name in dict(sliced.named_parameters()) for name, _ in plain.named_parameters())
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(batch()), sliced(batch()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_checkpoint_loads(*, assign: bool) -> None:
    plain, sliced = networks()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    leaves = [*sliced.active_runs.parameters()]
    train(sliced)
    sliced.load_state_dict(copy.deepcopy(plain.state_dict()), assign=assign)
    assert all(now is leaf for now, leaf in zip(sliced.active_runs.parameters(), leaves, strict=True))
    check_aliases(sliced)
    for model in (plain, sliced):
        train(model)
    check_gradients(plain, sliced)


def test_original_parameters_come_first_and_averages_follow() -> None:
    plain, sliced = networks()
    num_original = len([*plain.parameters()])
    assert [name for name, _ in sliced.named_parameters()][:num_original] == [name for name, _ in plain.named_parameters()]
    averaged = AveragedModel(plain, avg_fn=lambda old, new, _: (old + new) / 2)
    averaged.update_parameters(plain)
    optimizer = torch.optim.SGD(sliced.parameters(), lr=0.1, weight_decay=0.1)
    train(sliced)
    total = nn.utils.clip_grad_norm_(sliced.parameters(), 1e9)
    runs_only = torch.stack([leaf.grad.norm() for leaf in sliced.active_runs.parameters()])
    others = torch.stack([p.grad.norm() for p in [*sliced.parameters()][:num_original] if p.grad is not None])
    torch.testing.assert_close(total, torch.cat([runs_only, others]).norm())
    optimizer.step()
    averaged.update_parameters(sliced)
    for name, parameter in averaged.module.named_parameters():
        assert torch.equal(parameter, (plain.get_parameter(name) + sliced.state_dict()[name]) / 2)


@pytest.mark.parametrize("made_of", ["plain", "sliced"])
def test_averages_of_buffers_need_the_runs_out_of_the_way(made_of: str) -> None:
    plain, sliced = networks()
    averaged = AveragedModel(plain if made_of == "plain" else sliced, avg_fn=lambda old, new, _: (old + new) / 2, use_buffers=True)
    before = copy.deepcopy(averaged.module.state_dict())
    averaged.update_parameters(plain)
    with torch.no_grad():
        for leaf in sliced.active_runs.parameters():
            leaf.add_(1.0)
    train(sliced)  # statistics move
    with without_runs(sliced):
        averaged.update_parameters(sliced)
    check_aliases(sliced)
    found, expected = averaged.module.state_dict(), sliced.state_dict()
    for name, value in before.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], (value + expected[name]) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(*, reentrant: bool) -> None:
    plain, sliced = networks()
    train(plain)
    train(sliced, lambda x: checkpoint(sliced, x.requires_grad_(), use_reentrant=reentrant))
    check_gradients(plain, sliced)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str) -> None:
    plain, sliced = networks()
    compiled = torch.compile(sliced, backend=backend, fullgraph=True)
    for _ in range(2):
        train(plain)
        train(sliced, compiled)
        check_gradients(plain, sliced)
        with torch.no_grad():
            for leaf in sliced.active_runs.parameters():
                leaf.add_(1.0)
        plain.load_state_dict(sliced.state_dict())


def test_hooks_stay() -> None:
    _, sliced = networks()
    restore_layer(sliced.linear)
    seen = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(lambda gradient: seen.append(gradient.shape))

    sliced.linear.register_forward_hook(watch)
    sliced.linear.register_full_backward_hook(lambda module, before, after: seen.append("backward"))
    slice_layer(sliced.linear, CUTS["linear"])
    train(sliced)
    assert sorted(map(str, seen)) == ["backward", "torch.Size([7, 5, 4])"]


def test_statistics_are_those_of_the_plain_model() -> None:
    found = []
    plain, sliced = networks()
    groups = build_groups(plain, GroupSpec())
    for model in (plain, sliced):
        collector = Collector(model, groups, ExactFormulas())
        collector.arm({group.layer for group in groups}, Share(5))
        train(model)
        found.append(collector.take())
    assert {layer for layer, *_ in found[0]} == {"convolution", "norm", "linear"}
    assert found[0].keys() == found[1].keys()
    for key, (total, count) in found[0].items():
        torch.testing.assert_close(found[1][key][0], total)
        assert found[1][key][1] == count


def test_an_update_between_forward_and_backward_is_noticed() -> None:
    for duplicate in (lambda model: model, copy.deepcopy, through_pickle, nn.Module.double):
        _, sliced = networks()
        model = duplicate(sliced)
        x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
        output = model.linear(x)
        with torch.no_grad():
            active_runs(model.linear)["weight"][1][0].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_nothing_is_saved_that_no_gradient_needs() -> None:
    layer = nn.Linear(3, 4)
    layer.weight.requires_grad_(False)
    slice_layer(layer, {"bias": Cut(0, ((0, 2),))})
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.ones(2, 3)).sum().backward()
    assert not saved
    with torch.no_grad():
        assert not layer(torch.ones(2, 3)).requires_grad


def test_other_cuts_take_the_place_of_the_former() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(5, 8).double()
    sliced = copy.deepcopy(plain)
    x = torch.randn(4, 5, dtype=torch.float64)
    for layer in (plain, sliced):
        layer(x).square().sum().backward()
    first = slice_layer(sliced, {"weight": Cut(0, ((0, 2), (3, 7))), "bias": Cut(0, ((3, 7),))})
    assert torch.equal(first["weight"][1].grad, plain.weight.grad[3:7])
    second = slice_layer(sliced, {"weight": Cut(0, ((0, 2), (4, 6)))})
    assert second["weight"][0] is first["weight"][0]
    assert torch.equal(second["weight"][1].grad, plain.weight.grad[4:6])
    assert set(active_runs(sliced)) == {"weight"}
    assert isinstance(sliced.bias, nn.Parameter)
    assert not sliced.bias.requires_grad
    assert sliced.bias.grad is None
    plain.zero_grad()
    second["weight"][1].grad = None
    for layer in (plain, sliced):
        layer(x).square().sum().backward()
    torch.testing.assert_close(second["weight"][1].grad, plain.weight.grad[4:6])


def test_a_restored_layer_is_plain_and_holds_the_trained_values() -> None:
    plain, sliced = networks()
    with torch.no_grad():
        for leaf in sliced.active_runs.parameters():
            leaf.add_(1.0)
    values = copy.deepcopy(sliced.state_dict())
    for layer in CUTS:
        restore_layer(sliced.get_submodule(layer))
    sliced.active_runs.replace({})
    assert [type(module) for module in sliced.modules()][:-1] == [type(module) for module in plain.modules()]
    assert [name for name, _ in sliced.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert not sliced.linear.weight.requires_grad
    assert all(torch.equal(value, values[name]) for name, value in sliced.state_dict().items())
    assert not torch.equal(values["linear.weight"], plain.linear.weight)


def test_a_sequential_network_runs_with_the_runs_as_last_child() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    expected = model(torch.ones(1, 3))
    slice_layer(model[0], {"weight": Cut(0, ((0, 2),))})
    register(model)
    assert torch.equal(model(torch.ones(1, 3)), expected)


def test_runs_with_the_same_name_are_refused() -> None:
    with pytest.raises(ValueError, match="not unique"):
        ActiveRuns().replace({"a.b": nn.Parameter(torch.ones(1)), "a/b": nn.Parameter(torch.ones(1))})


class Copies(nn.Linear):
    def __deepcopy__(self, memo: dict[int, object]) -> "Copies":
        return self


class Extra(nn.Linear):
    """Owns more than its base's forward uses."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.scale = nn.Parameter(torch.ones(4))


class Takes(nn.Module):
    """The attribute is not the parameter."""

    weight = 0.0

    def __init__(self) -> None:
        super().__init__()
        self._parameters["weight"] = nn.Parameter(torch.ones(3, 3))


REFUSED = {
    "not its own": (nn.Sequential(nn.Linear(3, 4)), "0.weight"),
    "absent": (nn.Linear(3, 4, bias=False), "bias"),
    "lazy": (nn.LazyLinear(4), "weight"),
    "meta": (nn.Linear(3, 4, device="meta"), "weight"),
    "scalar": (nn.ParameterList([torch.tensor(1.0)]), "0"),
    "complex": (nn.Linear(3, 4, dtype=torch.complex64), "weight"),
    "recurrent": (nn.LSTM(3, 4), "weight_ih_l0"),
    "parametrized": (parametrizations.orthogonal(nn.Linear(3, 4)), "bias"),
    "parametrization": (parametrizations.orthogonal(nn.Linear(3, 4)).parametrizations.weight, "original"),
    "pruned": (prune.random_unstructured(nn.Linear(3, 4), "weight", amount=1), "weight_orig"),
    "pruned, bias": (prune.random_unstructured(nn.Linear(3, 4), "weight", amount=1), "bias"),
    "sparse gradient": (nn.Embedding(3, 4, sparse=True), "weight"),
    "renormalised": (nn.Embedding(3, 4, max_norm=1.0), "weight"),
    "copies itself": (Copies(3, 4), "weight"),
    "more parameters": (Extra(), "weight"),
    "hidden": (Takes(), "weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sliced(name: str) -> None:
    module, role = REFUSED[name]
    assert not is_sliceable(module, role)
    with pytest.raises(ValueError, match="cannot be cut"):
        slice_layer(module, {role: Cut(0, ((0, 1),))})
    assert parametrize.is_parametrized(module) or plain_class(module) is type(module)


@pytest.mark.parametrize(
    ("dim", "runs"),
    [
        (0, ()),
        (0, ((0, 4),)),
        (0, ((0, 1), (1, 2))),
        (0, ((2, 3), (0, 1))),
        (0, ((1, 1),)),
        (0, ((3, 5),)),
        (0, ((-1, 2),)),
        (1, ((0, 3),)),
        (2, ((0, 1),)),
        (-1, ((0, 1),)),
    ],
)
def test_runs_that_do_not_fit_are_refused(dim: int, runs: tuple[tuple[int, int], ...]) -> None:
    layer = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="weight of shape"):
        slice_layer(layer, {"weight": Cut(dim, runs)})
    assert type(layer) is nn.Linear
    assert layer.weight.requires_grad
