"""State is cut and joined entry by entry; groups keep their order, their options and whoever follows them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from fat_ray.errors import InputError
from fat_ray.freeze.migrate import Migration, Move, Piece
from tests.support.optimizers import OPTIMIZERS


def trained(name: str, *parameters: nn.Parameter, steps: int = 3) -> optim.Optimizer:
    optimizer = OPTIMIZERS[name](parameters)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def weight(rows: int = 8, columns: int = 3) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)))


def alias(full: nn.Parameter, run: tuple[int, int], dim: int = 0) -> Piece:
    return Piece(nn.Parameter(full.detach().narrow(dim, run[0], run[1] - run[0])), run)


def snapshot(optimizer: optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in optimizer.state[parameter].items()}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_cut_at_the_runs_and_joined_again(name: str, dim: int) -> None:
    full = weight(8, 8)
    optimizer = trained(name, full)
    before = snapshot(optimizer, full)
    pieces = (alias(full, (1, 3), dim), alias(full, (5, 8), dim))
    migration = Migration(optimizer, {"w": full})
    migration.move({full: Move(dim, (Piece(full),), pieces, ((1, 3), (5, 8)))})
    assert set(optimizer.state) <= {piece.parameter for piece in pieces}
    for piece in pieces:
        start, stop = piece.run
        for key, value in before.items():
            now = optimizer.state[piece.parameter][key]
            if isinstance(value, Tensor) and value.ndim:
                assert torch.equal(now, value.narrow(dim, start, stop - start))
            else:
                assert now == value
    assert not before or optimizer.state[pieces[0].parameter] is not optimizer.state[pieces[1].parameter]
    migration.move({full: Move(dim, pieces, (Piece(full),), ((1, 3), (6, 8)))})  # row 5 froze in between, and thaws with the others
    kept, others = [1, 2, 6, 7], [0, 3, 4, 5]
    for key, value in before.items():
        now = optimizer.state[full][key]
        if isinstance(value, Tensor) and value.ndim:
            assert torch.equal(now.index_select(dim, torch.tensor(kept)), value.index_select(dim, torch.tensor(kept)))
            start = {"step_size": torch.tensor(0.02), "sum": torch.tensor(0.1), "ax": full.detach()}.get(key, torch.tensor(0.0))
            assert torch.equal(*(x.index_select(dim, torch.tensor(others)) for x in (now, start.expand(8, 8))))
        else:
            assert now == value


def test_pieces_count_their_steps_apart() -> None:
    full = weight()
    optimizer = trained("adamw", full)
    pieces = (alias(full, (0, 2)), alias(full, (4, 8)))
    Migration(optimizer, {"w": full}).move({full: Move(0, (Piece(full),), pieces, ((0, 2), (4, 8)))})
    first, second = (optimizer.state[piece.parameter]["step"] for piece in pieces)
    first += 1
    assert (first.item(), second.item()) == (4, 3)


def test_groups_keep_their_order_their_options_and_foreign_parameters() -> None:
    a, b, c, foreign = weight(), weight(), weight(), weight()
    optimizer = optim.AdamW([{"params": [a, foreign, b], "lr": 0.5}, {"params": [c], "weight_decay": 0.0}], lr=0.1)
    first, second = optimizer.param_groups
    migration = Migration(optimizer, {"a": a, "b": b, "c": c})
    runs = (alias(a, (0, 2)), alias(a, (4, 8)))
    migration.move({a: Move(0, (Piece(a),), runs, ((0, 2), (4, 8))), c: Move(0, (Piece(c),), (), ())})
    assert optimizer.param_groups[0] is first  # schedulers hold on to it
    assert first["params"] == [runs[0].parameter, runs[1].parameter, foreign, b]
    assert (first["lr"], second["weight_decay"], second["params"]) == (0.5, 0.0, [])
    migration.move({c: Move(0, (), (Piece(c),), ()), a: Move(0, runs, (), ())})
    assert (first["params"], second["params"]) == ([foreign, b], [c])


def test_groups_survive_a_loaded_state() -> None:
    a, b = weight(), weight()
    optimizer = trained("adamw", a, b)
    migration = Migration(optimizer, {"a": a, "b": b})
    optimizer.load_state_dict(optimizer.state_dict())  # makes new group objects
    migration.move({a: Move(0, (Piece(a),), (alias(a, (0, 2)),), ((0, 2),))})
    assert [tuple(p.shape) for p in optimizer.param_groups[0]["params"]] == [(2, 3), (8, 3)]


def test_names_follow_their_parameters() -> None:
    a, b = weight(), weight()
    optimizer = optim.AdamW([("a", a), ("b", b)])
    migration = Migration(optimizer, {"a": a, "b": b})
    runs = (alias(a, (0, 2)), alias(a, (4, 8)))
    migration.move({a: Move(0, (Piece(a),), runs, ()), b: Move(0, (Piece(b),), (), ())})
    assert optimizer.param_groups[0]["param_names"] == ["a[0:2]", "a[4:8]"]
    assert optimizer.state_dict()["param_groups"][0]["params"] == [0, 1]
    migration.move({a: Move(0, runs, (Piece(a),), ())})
    assert optimizer.param_groups[0]["param_names"] == ["a"]


def test_a_scheduler_goes_on() -> None:
    a = weight()
    optimizer = trained("sgd", a)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    migration = Migration(optimizer, {"a": a})
    rates = []
    for step in range(4):
        if step == 1:
            migration.move({a: Move(0, (Piece(a),), (alias(a, (0, 2)),), ((0, 2),))})
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05 * (1 + c) / 2 for c in (2**-0.5, 0, -(2**-0.5), -1)])


def test_missing_parameters_are_named() -> None:
    a, b = weight(), weight()
    with pytest.raises(InputError, match=r"the optimizer does not hold b of the model"):
        Migration(optim.SGD([a], lr=0.1), {"a": a, "b": b})


def test_every_optimizer_of_torch_is_tried_or_known_not_to_work_entry_by_entry() -> None:
    whole = {optim.Adafactor, optim.LBFGS, optim.Muon, optim.SparseAdam}  # see test_entries
    tried = {type(build([nn.Parameter(torch.ones(2))])) for build in OPTIMIZERS.values()}
    known = {kind for kind in vars(optim).values() if isinstance(kind, type) and issubclass(kind, optim.Optimizer)}
    assert tried | whole | {optim.Optimizer} == known
