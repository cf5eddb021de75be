"""Moves an optimizer from one set of parameters to another: its state is cut and joined with them, its groups keep order and options."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

from fat_ray.errors import InputError

Run = tuple[int, int]
"""First and last entry (exclusive) along the dimension that divides a tensor."""

_ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.ASGD,
    optim.Rprop,
)
"""Each entry's update depends on that entry alone, and their state is one value per entry or one per tensor."""


@dataclass(frozen=True)
class Piece:
    """What the optimizer holds of a tensor: a run that is a parameter of its own, or (None) all of it."""

    parameter: nn.Parameter
    run: Run | None = None

    def __str__(self) -> str:
        return "" if self.run is None else f"[{self.run[0]}:{self.run[1]}]"

    def within(self, dim: int) -> Run:
        """Where it lies in the whole tensor."""
        return self.run or (0, self.parameter.shape[dim] if self.parameter.ndim else 1)


@dataclass(frozen=True)
class Move:
    """How the optimizer's hold on a tensor changes.

    Attributes:
        dim: The dimension that divides the tensor.
        old: What it held.
        new: What it holds from now on.
        kept: Entries that were active and stay so: their state is kept. That of all others starts anew.
    """

    dim: int
    old: tuple[Piece, ...]
    new: tuple[Piece, ...]
    kept: tuple[Run, ...]


class Migration:
    """The parameters of an optimizer, which may come in pieces.

    Groups are known by their positions: `load_state_dict` makes new ones. Groups and parameters that are not the model's are left alone.

    Args:
        optimizer: Holds `parameters`.
        parameters: The trainable tensors of the model by name.

    Raises:
        InputError: The optimizer lacks some of them, or no tensor can leave it.
    """

    def __init__(self, optimizer: optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        if isinstance(optimizer, optim.LBFGS):
            raise InputError(
                "optimizer = LBFGS: its steps join all entries, so none can be frozen; take another, such as torch.optim.AdamW"
            )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if missing := [name for name, parameter in parameters.items() if id(parameter) not in held]:
            others = f" and {len(missing) - 1} other trainable parameters" if len(missing) > 1 else ""
            raise InputError(
                f"the optimizer does not hold {missing[0]}{others} of the model: give it all of them, "
                "or set requires_grad = False on those that shall not be trained"
            )
        self.optimizer = optimizer
        self._originals = [list(group["params"]) for group in optimizer.param_groups]
        self._names = [list(group.get("param_names", ())) for group in optimizer.param_groups]
        self._pieces: dict[int, tuple[Piece, ...]] = {}

    def divides(self, parameter: nn.Parameter, dim: int) -> bool:
        """Whether runs of a tensor along the dimension can be parameters of their own for this optimizer.

        Optimizers that are not torch's, and those that look at a matrix as a whole (Adafactor, Muon), cannot. Fused ones take a
        parameter's memory as one piece, which runs of columns are not.
        """
        step = inspect.unwrap(type(self.optimizer).step)
        known = any(isinstance(self.optimizer, kind) and step is inspect.unwrap(kind.step) for kind in _ELEMENTWISE)
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        return known and (dim == 0 or parameter.ndim < 2 or not fused)

    def move(self, moves: Mapping[nn.Parameter, Move]) -> None:
        """Replaces what the optimizer holds.

        Args:
            moves: By the whole tensor.
        """
        for full, move in moves.items():
            group = self.optimizer.param_groups[self._position(full)]
            states = [(piece, self.optimizer.state.pop(piece.parameter, {})) for piece in move.old]
            for piece in move.new:
                if state := _joined(move, piece, states, self.optimizer, group):
                    self.optimizer.state[piece.parameter] = state
            self._pieces[id(full)] = move.new
        self._fill_groups()
        moved = [piece.parameter for move in moves.values() for piece in move.new]
        self._give_momentum(moved)
        self._give_sums(moved)

    def _give_momentum(self, parameters: list[nn.Parameter]) -> None:
        """Fused SGD takes momentum of all parameters or of none: those that thaw start at zero where others have theirs already."""
        if not isinstance(self.optimizer, optim.SGD):
            return
        state, moved = self.optimizer.state, {id(parameter) for parameter in parameters}
        for group in self.optimizer.param_groups:
            if group["fused"] and any("momentum_buffer" in state.get(parameter, {}) for parameter in group["params"]):
                for parameter in group["params"]:
                    if id(parameter) in moved:
                        state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter, requires_grad=False))

    def _give_sums(self, parameters: list[nn.Parameter]) -> None:
        """Adagrad makes its state when it is made itself, and in torch 2.11 never again: those that thaw would find none."""
        if not isinstance(self.optimizer, optim.Adagrad):
            return
        moved = {id(parameter) for parameter in parameters}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in moved and not self.optimizer.state[parameter]:
                    device = parameter.device if group.get("fused") else None
                    total = _start(self.optimizer, group, "sum", parameter, parameter.dtype)
                    self.optimizer.state[parameter] = {"step": torch.zeros((), dtype=torch.float32, device=device), "sum": total}

    def _position(self, full: nn.Parameter) -> int:
        return next(i for i, params in enumerate(self._originals) if any(p is full for p in params))

    def _fill_groups(self) -> None:
        """Each original's pieces in its place."""
        for group, originals, names in zip(self.optimizer.param_groups, self._originals, self._names, strict=False):
            pieces = [self._pieces.get(id(original), (Piece(original),)) for original in originals]
            group["params"] = [piece.parameter for of in pieces for piece in of]
            if names:
                group["param_names"] = [f"{name}{piece}" for name, of in zip(names, pieces, strict=True) for piece in of]


def _joined(
    move: Move, piece: Piece, states: Iterable[tuple[Piece, Mapping[str, Any]]], optimizer: optim.Optimizer, group: Mapping[str, Any]
) -> dict[str, Any]:
    """The state of a new piece, from those of the old pieces of its tensor; empty where there is none."""
    joined: dict[str, Any] = {}
    for old, state in states:
        for key, value in state.items():
            if not _per_element(value, old.parameter):
                # one for the whole tensor, so equal in all of its pieces; never one object in two states: optimizers count in place
                if joined.get(key) is None:
                    joined[key] = value.clone() if isinstance(value, Tensor) else value
                continue
            if joined.get(key) is None:
                joined[key] = _start(optimizer, group, key, piece.parameter, value.dtype)
            _copy(move, (old, value), (piece, joined[key]))
    return joined


def _copy(move: Move, source: tuple[Piece, Tensor], target: tuple[Piece, Tensor]) -> None:
    """Copies what two pieces have in common of the kept entries."""
    (old, values), (new, joined) = source, target
    (old_first, old_last), (new_first, new_last) = old.within(move.dim), new.within(move.dim)
    for first, last in move.kept:
        start, stop = max(first, old_first, new_first), min(last, old_last, new_last)
        if start < stop:
            values_there = values.narrow(move.dim, start - old_first, stop - start)
            joined.narrow(move.dim, start - new_first, stop - start).copy_(values_there)


def _per_element(value: object, parameter: nn.Parameter) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == parameter.shape


def _start(optimizer: optim.Optimizer, group: Mapping[str, Any], key: str, parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
    """State of entries that the optimizer meets for the first time: zero, unless it says otherwise."""
    fresh = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    if isinstance(optimizer, optim.ASGD) and key == "ax":  # an average of the entries themselves
        return fresh.copy_(parameter.detach())
    if isinstance(optimizer, optim.Rprop) and key == "step_size":
        return fresh.fill_(float(group["lr"]))
    if isinstance(optimizer, optim.Adagrad) and key == "sum":
        return fresh.fill_(optimizer.defaults["initial_accumulator_value"])
    return fresh.zero_()
