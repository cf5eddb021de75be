"""Carries decisions out: what is frozen does not move, to the bit, whatever the optimizer does, and costs nothing where that can be had.

A tensor whose entries are all frozen leaves autograd and the optimizer. One that is frozen in part is sliced where its layer and the
optimizer allow it (see `sliced`): its active runs become parameters of their own, and of the frozen rows neither gradient nor optimizer
state is left. Else, or where slices would cost more than they save, it is masked: the gradient of its frozen entries is cleared after
backward, so that clipping counts active entries only, and they are put back after the optimizer's step.

What is frozen are parameters. Buffers are not: in training mode a frozen BatchNorm keeps updating its running statistics, as it does in
plain training with `requires_grad=False`; put the module into eval mode to hold them.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fat_ray.errors import InputError
from fat_ray.fisher.flat import Arrays, below, prefixed
from fat_ray.fisher.groups import Group
from fat_ray.freeze.forms import Bools, Form, GroupedTensor, grouped_tensors
from fat_ray.freeze.guard import Guard, Held
from fat_ray.freeze.migrate import Migration, Move, Piece
from fat_ray.freeze.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from fat_ray.freeze.sliced import ActiveRuns, Cut, restore_layer, slice_layer

Floats = NDArray[np.float64]


class ActiveEntries:
    """Which entries of a model may move.

    Args:
        model: The network, not its DDP wrapper.
        optimizer: Holds the trainable parameters of `model`; it may hold others besides.
        groups: A partition of the trainable parameters, see `fisher.groups.build_groups`.

    Attributes:
        active: Per group, whether it may move.
        elements: Per group, its number of entries.
        positions: How often a step uses each entry of a layer, where that is known; it must be equal on all ranks.

    Raises:
        InputError: The model has no trainable parameters, the optimizer does not hold all of them or cannot do without one, or a group
            divides a tensor that is sharded over ranks.
        ValueError: The groups are not a partition of the trainable parameters.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, groups: list[Group]) -> None:
        if hasattr(model, "active_runs"):
            raise InputError("model.active_runs is taken: another Freezer holds this model; load its state_dict into a new one")
        self._model, self._groups = model, groups
        self._tensors = grouped_tensors(model, groups)
        self._forms: dict[str, Form] = dict.fromkeys(self._tensors, "free")
        self._pieces: dict[str, tuple[Piece, ...]] = {name: (Piece(tensor.full),) for name, tensor in self._tensors.items()}
        self._migration = Migration(optimizer, {name: tensor.full for name, tensor in self._tensors.items()})
        self._guard = Guard(optimizer)
        self._masked: list[Held] = []
        self.positions: Mapping[nn.Module, int] = {}
        self.elements = np.array([group.elements for group in groups], np.int64)
        self.active: Bools = np.ones(len(groups), np.bool_)

    @property
    def active_elements(self) -> int:
        """Number of entries that may still move."""
        return int(self.elements[self.active].sum())

    @property
    def frontier(self) -> str | None:
        """Path of the first layer with an active entry: all layers before it run without autograd. None while nothing is frozen."""
        return None if self.active.all() or not self.active.any() else self._groups[int(self.active.argmax())].layer

    def active_layers(self) -> set[str]:
        """Paths of the modules that own an active group."""
        return {group.layer for group, on in zip(self._groups, self.active, strict=True) if on}

    def runs(self) -> dict[str, nn.Parameter]:
        """What the optimizer holds of the model, by the entries it stands for: ``name``, or ``name[start:stop]`` for runs."""
        return {f"{name}{piece}": piece.parameter for name, pieces in self._pieces.items() for piece in pieces}

    def state(self) -> Arrays:
        """What is active, and what decided about forms, for `load_state`."""
        paths = {module: path for path, module in self._model.named_modules()}
        return {"active": self.active, **prefixed("positions", {paths[m]: np.array(count) for m, count in self.positions.items()})}

    def load_state(self, arrays: Arrays) -> bool:
        """Goes on from what `state` returned, before the optimizer's first step; returns what `set_active` does."""
        self.positions = {self._model.get_submodule(path): int(count) for path, count in below("positions", arrays).items()}
        return self.set_active(arrays["active"])

    def optimizer_state(self) -> OptimizerState:
        """State and options of the optimizer, by `runs`."""
        return optimizer_state(self._migration.optimizer, self.runs())

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Goes on from what `optimizer_state` returned; the same entries must be active.

        Raises:
            ValueError: The optimizer holds other entries.
        """
        load_optimizer_state(self._migration.optimizer, self.runs(), state)

    def set_active(self, active: Bools) -> bool:
        """Freezes and thaws groups; call it between a backward and the optimizer's step.

        Gradients go where their entries go. Entries that thaw have no gradient yet, and start with the state of an optimizer that has
        not seen them; the count of its steps is that of their tensor.

        Args:
            active: Per group, whether it may move from now on.

        Returns:
            Whether the trainable parameters are others than before, in which case a DDP wrapper must be made anew.
        """
        self.mask_gradients()  # entries that thaw have none yet, in whatever form
        before, self.active = self.active, active.copy()
        touched = [tensor for tensor in self._tensors.values() if tensor.runs(before) != tensor.runs(active)]
        gradients = {tensor.name: self._gradient(tensor) for tensor in touched}
        pieces = dict(self._pieces)
        for tensor in touched:
            divided = self._migration.divides(tensor.full, tensor.dim)
            self._forms[tensor.name] = tensor.form(active, divided=divided, positions=self.positions.get(tensor.module))
        self._reshape({id(tensor.module): tensor.module for tensor in touched}.values())
        for tensor in touched:
            self._hand_over(tensor, gradients[tensor.name], pieces[tensor.name])
        kept = before & active
        moves = {tensor.full: Move(tensor.dim, pieces[tensor.name], self._pieces[tensor.name], tensor.runs(kept)) for tensor in touched}
        self._migration.move(moves)
        self._register_runs()
        self._masked = self._mask()
        self.scale_updates(None)
        return any(_identities(pieces[tensor.name]) != _identities(self._pieces[tensor.name]) for tensor in touched)

    def gradient(self, parameter: str) -> Tensor:
        """The gradient of a whole tensor, gathered from all ranks if it is sharded; zero where it is frozen, or the loss does not use it.

        Args:
            parameter: Name of a tensor that groups hold.
        """
        tensor = self._tensors[parameter]
        gradient = self._gradient(tensor)
        if gradient is None:
            return torch.zeros(tensor.full.shape, dtype=tensor.full.dtype, device=tensor.full.device)
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        return whole.to_dense() if whole.is_sparse else whole

    def _gradient(self, tensor: GroupedTensor) -> Tensor | None:
        if self._forms[tensor.name] != "sliced":
            return tensor.full.grad
        whole = torch.zeros_like(tensor.full, requires_grad=False)
        for piece in self._pieces[tensor.name]:
            if piece.parameter.grad is None:
                return None
            whole[tensor.index(piece.within(tensor.dim))] = piece.parameter.grad
        return whole

    def mask_gradients(self) -> None:
        """Clears what is frozen in the gradients of masked tensors; call after backward and before clipping."""
        for frozen in self._masked:
            gradient = frozen.tensor.grad
            if gradient is not None and not gradient.is_sparse:  # sparse gradients cannot be clipped anyway
                gradient[frozen.index] = 0

    def scale_updates(self, factors: Floats | None) -> None:
        """Makes the optimizer's next steps smaller, or larger, for some groups, until it is called again or the active entries change.

        Args:
            factors: Per group, what its updates are multiplied by; None: 1.
        """
        scaled: list[Held] = []
        if factors is not None:
            for number in np.flatnonzero(self.active & (factors != 1)).tolist():
                members = self._groups[number].members
                scaled += [Held(self._tensors[m.parameter].full, m.index, float(factors[number])) for m in members]
        self._guard.held = (*self._masked, *scaled)

    def _mask(self) -> list[Held]:
        masked = [tensor for name, tensor in self._tensors.items() if self._forms[name] == "masked"]
        return [Held(tensor.full, tensor.index(run)) for tensor in masked for run in tensor.runs(~self.active)]

    def _reshape(self, modules: Iterable[nn.Module]) -> None:
        """Brings modules, and what of them requires gradients, into their present forms."""
        for module in modules:
            own = [tensor for tensor in self._tensors.values() if tensor.module is module]
            cuts = {t.role: Cut(t.dim, t.runs(self.active)) for t in own if self._forms[t.name] == "sliced"}
            leaves: Mapping[str, tuple[nn.Parameter, ...]] = {}
            if cuts:
                leaves = slice_layer(module, cuts)
            else:
                restore_layer(module)
            for tensor in own:
                form = self._forms[tensor.name]
                tensor.full.requires_grad_(form in ("free", "masked"))
                if form == "sliced":
                    runs = zip(leaves[tensor.role], cuts[tensor.role].runs, strict=True)
                    self._pieces[tensor.name] = tuple(Piece(leaf, run) for leaf, run in runs)
                else:
                    self._pieces[tensor.name] = () if form == "frozen" else (Piece(tensor.full),)

    def _hand_over(self, tensor: GroupedTensor, gradient: Tensor | None, old: tuple[Piece, ...]) -> None:
        """Gives new pieces their part of the gradient."""
        known = _identities(old)
        pieces = self._pieces[tensor.name]
        for piece in pieces:
            if id(piece.parameter) not in known:
                part = None if gradient is None else gradient[tensor.index(piece.within(tensor.dim))]
                # a copy, so that the memory of the whole gradient goes
                piece.parameter.grad = None if part is None else torch.empty_like(piece.parameter).copy_(part)
        if id(tensor.full) not in _identities(pieces):
            tensor.full.grad = None

    def _register_runs(self) -> None:
        """Makes the runs parameters of the model, in network order and after all others."""
        sliced = [name for name, form in self._forms.items() if form == "sliced"]
        runs = {f"{name}{piece}": piece.parameter for name in sliced for piece in self._pieces[name]}
        if not runs:
            self._model._modules.pop("active_runs", None)  # noqa: SLF001
            return
        if not hasattr(self._model, "active_runs"):
            self._model.add_module("active_runs", ActiveRuns())
        registered = self._model.active_runs
        assert isinstance(registered, ActiveRuns)
        registered.replace(runs)


def _identities(pieces: tuple[Piece, ...]) -> list[int]:
    return [id(piece.parameter) for piece in pieces]
