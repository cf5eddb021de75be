"""Which form a tensor takes, what leaves autograd and optimizer, and what is refused; for the numbers see numerics/test_freezer.py."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn, optim

from fat_ray.errors import InputError
from fat_ray.fisher.groups import build_groups
from fat_ray.freeze.entries import ActiveEntries
from fat_ray.freeze.positions import PositionCounter
from fat_ray.freeze.sliced import active_runs
from fat_ray.spec.run import GroupSpec

FIRST_LAYER = [False, True, False, False, True, True, True, True]
"""Rows 2 and 3 of eight."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def entries_of(model: nn.Module, optimizer: optim.Optimizer | None = None, **groups: object) -> tuple[ActiveEntries, optim.Optimizer]:
    optimizer = optimizer or optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    spec = GroupSpec.model_validate({"blocks": 4, "min_block": 1, **groups})
    return ActiveEntries(model, optimizer, build_groups(model, spec)), optimizer


def held(optimizer: optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def backward(model: nn.Module, seed: int = 0) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(x).square().mean().backward()


def train(model: nn.Module, entries: ActiveEntries, optimizer: optim.Optimizer, steps: int = 3) -> None:
    for seed in range(steps):
        backward(model, seed)
        entries.mask_gradients()
        optimizer.step()


def test_without_frozen_groups_nothing_differs_from_plain_training() -> None:
    plain, watched = network(), network()
    plain_optimizer = optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.5)
    entries, optimizer = entries_of(watched)
    for seed in range(4):
        backward(plain, seed)
        backward(watched, seed)
        entries.mask_gradients()
        plain_optimizer.step()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_a_layer_frozen_in_part_holds_gradients_and_state_of_its_active_rows_only() -> None:
    model = network()
    entries, optimizer = entries_of(model)
    train(model, entries, optimizer)
    assert entries.set_active(np.array(FIRST_LAYER))
    train(model, entries, optimizer)
    whole = dict(model.named_parameters())["0.weight"]
    (_, (run,)) = active_runs(model[0])["weight"]
    assert run.data_ptr() == whole[2].data_ptr()
    assert whole.grad is None
    assert not whole.requires_grad
    assert optimizer.state[run]["exp_avg"].shape == (2, 6)
    assert whole not in optimizer.state
    assert [tuple(p.shape) for p in held(optimizer)] == [(2, 6), (2,), (4, 8), (4,)]  # in the order of the model
    assert set(held(optimizer)) == {p for p in model.parameters() if p.requires_grad}
    assert entries.active_elements == sum(p.numel() for p in held(optimizer)) == 2 * 7 + 36


def test_a_wholly_frozen_layer_is_plain_and_leaves_autograd_and_optimizer() -> None:
    model = network()
    entries, optimizer = entries_of(model)
    train(model, entries, optimizer)
    entries.set_active(np.array(FIRST_LAYER))
    assert entries.frontier == "0"
    assert entries.set_active(np.array([False] * 4 + [True] * 4))
    frozen = model.get_parameter("0.weight")
    assert type(model[0]) is nn.Linear
    assert (frozen.requires_grad, frozen.grad) == (False, None)
    assert held(optimizer) == [model.get_parameter("2.weight"), model.get_parameter("2.bias")]
    assert len(optimizer.state) == 2
    assert not hasattr(model, "active_runs")
    assert entries.active_layers() == {"2"}
    assert entries.frontier == "2"


def test_the_gradient_at_an_event_goes_with_its_entries() -> None:
    model = network()
    entries, _ = entries_of(model)
    entries.positions = dict.fromkeys(model, 10**9)  # as if two runs were worth it
    backward(model)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    entries.set_active(np.array([True, True, False, True, False, True, True, True]))
    (_, (upper, lower)) = active_runs(model[0])["weight"]
    assert torch.equal(upper.grad, before["0.weight"][:4])
    assert torch.equal(lower.grad, before["0.weight"][6:])
    gathered = entries.gradient("0.weight")
    before["0.weight"][4:6] = 0
    assert torch.equal(gathered, before["0.weight"])
    assert torch.equal(entries.gradient("2.bias")[1:], before["2.bias"][1:])
    entries.set_active(np.ones(8, bool))
    assert torch.equal(model.get_parameter("0.weight").grad, before["0.weight"])  # what thaws has no gradient in this step


@pytest.mark.parametrize("optimizer", [optim.Adafactor, optim.SparseAdam, type("Mine", (optim.SGD,), {"step": lambda self: None})])
def test_optimizers_that_do_not_work_entry_by_entry_keep_whole_tensors(optimizer: type[optim.Optimizer]) -> None:
    model = network()
    entries, made = entries_of(model, optimizer(model.parameters(), lr=0.1))
    backward(model)
    assert not entries.set_active(np.array(FIRST_LAYER))  # the same parameters: DDP may stay
    entries.mask_gradients()
    gradient = model.get_parameter("0.weight").grad
    assert not gradient[:2].any()
    assert gradient[2:4].any()
    assert held(made) == list(model.parameters())


@pytest.mark.parametrize("build", [optim.Adafactor, lambda p: optim.Muon([q for q in p if q.ndim == 2], lr=0.1)])
def test_masked_entries_do_not_move_though_the_optimizer_would_move_them(build: type[optim.Optimizer]) -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    entries, optimizer = entries_of(model, build(model.parameters()))
    train(model, entries, optimizer)
    entries.set_active(np.array(FIRST_LAYER))
    before = copy.deepcopy(model.state_dict())
    train(model, entries, optimizer)
    after = model.state_dict()["0.weight"]
    still = [0, 1, 4, 5, 6, 7]
    assert torch.equal(after[still], before["0.weight"][still])
    assert not torch.isclose(after[2:4], before["0.weight"][2:4]).all()


def test_runs_that_cost_more_than_they_save_are_not_made() -> None:
    for positions, sliced in ((1, False), (10**9, True)):
        model = network()
        entries, _ = entries_of(model)
        entries.positions = {model[0]: positions}
        entries.set_active(np.array([True, False, True, False, True, True, True, True]))
        assert bool(active_runs(model[0])) is sliced


def test_positions_are_counted_over_the_micro_batches_of_one_step() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(9, 5), nn.LayerNorm(5))
    counter = PositionCounter(model)
    for batch in (3, 2):
        counter.arm()
        model(torch.randn(batch, 2, 5, 5))
    with torch.no_grad():
        model(torch.randn(7, 2, 5, 5))
    assert counter.take(torch.device("cpu"), None) == {model[0]: 5 * 9, model[2]: 5 * 4}
    assert not model[0]._forward_hooks


def test_a_subclass_that_only_adds_to_a_known_optimizer_is_one() -> None:
    class Named(optim.AdamW):
        name = "mine"

    model = network()
    entries, _ = entries_of(model, Named(model.parameters()))
    assert entries.set_active(np.array(FIRST_LAYER))
    assert active_runs(model[0])


def test_fused_optimizers_are_given_no_runs_with_gaps() -> None:
    model = network()
    entries, _ = entries_of(model, optim.AdamW(model.parameters(), fused=True), along="columns")
    active = np.ones(len(entries.active), bool)
    active[0] = False
    assert not entries.set_active(active)
    assert not active_runs(model[0])


def test_scaled_updates_are_exact_and_end_with_the_factors() -> None:
    plain, scaled = network(), network()
    plain_optimizer = optim.SGD(plain.parameters(), lr=0.1)
    entries, optimizer = entries_of(scaled, optim.SGD(scaled.parameters(), lr=0.1))
    start = copy.deepcopy(plain.state_dict())
    for model, made in ((plain, plain_optimizer), (scaled, optimizer)):
        backward(model)
        entries.scale_updates(np.array([1.0] * 4 + [0.25] * 4))
        made.step()
    for key, value in scaled.state_dict().items():
        full = plain.state_dict()[key]
        expected = start[key] + 0.25 * (full - start[key]) if key.startswith("2.") else full
        assert torch.equal(value, expected)
    entries.scale_updates(None)
    scaled.load_state_dict(plain.state_dict())
    for model, made in ((plain, plain_optimizer), (scaled, optimizer)):
        backward(model)
        made.step()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in scaled.state_dict().items())


def test_scaled_updates_of_sliced_layers_leave_what_is_frozen() -> None:
    model = network()
    entries, optimizer = entries_of(model)
    backward(model)
    entries.set_active(np.array(FIRST_LAYER))
    entries.scale_updates(np.full(8, 0.5))
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    after = model.state_dict()["0.weight"]
    step = (after - before["0.weight"])[2:4]
    assert torch.equal(after[4:], before["0.weight"][4:])
    expected = -0.5 * 0.1 * (torch.sign(step) * -1 + 0.5 * before["0.weight"][2:4])  # Adam's first step is the sign of the gradient
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-6)


def test_copies_and_pickles_of_a_model_in_training_compute_the_same() -> None:
    model = network()
    entries, optimizer = entries_of(model)
    backward(model)
    entries.set_active(np.array(FIRST_LAYER))
    optimizer.step()
    x = torch.randn(3, 6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert list(other.state_dict()) == list(network().state_dict())
        plain = network()
        plain.load_state_dict(other.state_dict())
        assert torch.equal(plain(x), model(x))


def test_groups_that_are_no_partition_are_refused() -> None:
    model = network()
    groups = build_groups(model, GroupSpec(blocks=4, min_block=1))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"do not cover the 8 rows or columns of 0\.weight exactly once"):
        ActiveEntries(model, optimizer, groups[1:])
    with pytest.raises(ValueError, match="exactly once"):
        ActiveEntries(model, optimizer, [*groups, groups[0]])


def test_an_optimizer_that_lacks_parameters_is_refused_and_one_that_has_more_is_not() -> None:
    model, loss = network(), nn.Linear(4, 1)
    with pytest.raises(InputError, match=r"does not hold 2\.weight and 1 other trainable parameters of the model: .*requires_grad"):
        entries_of(model, optim.SGD(model[0].parameters(), lr=0.1))
    model[2].requires_grad_(False)
    entries, optimizer = entries_of(model, optim.SGD([*loss.parameters(), *model.parameters()], lr=0.1))
    entries.set_active(np.array([False] * 4))
    assert held(optimizer) == [*loss.parameters(), *model[2].parameters()]


def test_models_and_optimizers_that_cannot_be_frozen_are_refused() -> None:
    model = network()
    with pytest.raises(InputError, match="optimizer = LBFGS: its steps join all entries"):
        entries_of(model, optim.LBFGS(model.parameters()))
    with pytest.raises(InputError, match="the model has no trainable parameters"):
        entries_of(network().requires_grad_(False), optim.SGD(model.parameters(), lr=0.1))
    entries, optimizer = entries_of(model)
    entries.set_active(np.array(FIRST_LAYER))
    with pytest.raises(InputError, match="another Freezer holds this model"):
        entries_of(model, optimizer)


def test_a_shared_tensor_is_masked_and_one_that_only_one_module_uses_is_sliced() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(8, 6), "mix": nn.Linear(6, 8), "out": nn.Linear(6, 8, bias=False)})
    model["out"].weight = model["embed"].weight
    entries, _ = entries_of(model)
    active = np.ones(len(entries.active), bool)
    active[[0, 4]] = False
    entries.set_active(active)
    assert not active_runs(model["embed"])
    assert not active_runs(model["out"])
    assert active_runs(model["mix"])


def test_sparse_gradients_are_left_to_the_hooks() -> None:
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True))
    entries, optimizer = entries_of(model, optim.SparseAdam(model.parameters(), lr=0.1))
    entries.set_active(np.array([True, False, True, True]))
    before = model[0].weight.detach().clone()
    model(torch.tensor([1, 2, 3, 7])).sum().backward()
    entries.mask_gradients()
    optimizer.step()
    moved = (model[0].weight.detach() != before).any(1)
    assert moved.tolist() == [False, True, False, False, False, False, False, True]
