"""Layers that train runs of rows or columns of their parameters: what is frozen costs no gradient, no optimizer state and no traffic.

The whole parameter stays where it was, with `requires_grad=False`. Each active run is a `Parameter` that aliases its memory: an optimizer
that updates the run updates the layer, and cannot reach anything else. The module keeps its identity, its hooks and its state_dict; only
its class changes, as in `torch.nn.utils.parametrize`, to a subclass whose `forward` (Linear and convolutions, see `kernels`) or whose
attribute (`layer.weight`, for everything else and for code that reads the weights of a layer) leads gradients to the runs.

While gradients are recorded, `layer.weight` of a cut weight is therefore no leaf; `layer._parameters` and `named_parameters()` have it.
Writing `layer.weight.data = …` leaves the runs behind; `load_state_dict`, `.to()`, `deepcopy` and pickling take them along.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fat_ray.freeze.kernels import Assemble, ConvolutionRuns, Geometry, LinearRuns, Run, Runs

Leaves = tuple[nn.Parameter, ...]


@dataclass(frozen=True)
class Cut:
    """The active entries of one parameter.

    Runs of columns have gaps in memory. Optimizers with `fused=True` assume that there are none, and on the CPU write beside such runs:
    they must be given rows only.

    Attributes:
        dim: 0 for rows, 1 for columns.
        runs: Ascending, disjoint, not adjacent; at least one, and not the whole extent.
    """

    dim: int
    runs: Runs

    def check(self, shape: tuple[int, ...], role: str) -> None:
        """Raises ValueError where the runs do not fit a parameter of this shape."""
        extent = shape[self.dim] if self.dim in {0, 1} and self.dim < len(shape) else 0
        edges = [-1, *(edge for run in self.runs for edge in run)]
        ascending = all(before < after for before, after in itertools.pairwise(edges))
        if not self.runs or not ascending or edges[-1] > extent or self.runs == ((0, extent),):
            raise ValueError(f"{role} of shape {shape} cannot be cut along {self.dim=} at {self.runs}: ascending runs of a part are needed")

    def alias(self, full: Tensor, run: Run) -> Tensor:
        """The entries of a run, in the memory of the whole tensor."""
        return full.detach().narrow(self.dim, run[0], run[1] - run[0])


class Sliced(nn.Module):
    """What all sliced layers share: moving, loading, copying and pickling take the runs along."""

    plain_type: ClassVar[type[nn.Module]]
    sliced_runs: dict[str, tuple[Cut, Leaves]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Sliced":  # noqa: FBT001, FBT002  the base's
        before = {role: self._parameters[role] for role in self.sliced_runs}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow(before)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        before = {role: self._parameters[role] for role in self.sliced_runs}
        super()._load_from_state_dict(*args)
        self._follow(before)

    def _follow(self, before: Mapping[str, nn.Parameter | None]) -> None:
        """Keeps the whole parameters that were there, if others took their place, and points the runs to where their memory is now.

        Tensors keep their version counters when they get other memory, so that a parameter and its runs still share theirs.
        """
        for role, kept in before.items():
            now = self._parameters[role]
            if now is not kept and kept is not None and now is not None:
                _move(kept, now.detach())
                self._parameters[role] = kept
        for run, alias in self._aliases():
            grad, run.grad = run.grad, None
            _move(run, alias)
            if grad is not None:
                run.grad = grad.to(alias)

    def _aliases(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each run with the memory that it has to have."""
        found = []
        for role, (cut, leaves) in self.sliced_runs.items():
            full = _whole(self, role)
            found += [(leaf, cut.alias(full, run)) for leaf, run in zip(leaves, cut.runs, strict=True)]
        return found

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.plain_type, tuple(self.sliced_runs)), self.__getstate__()  # type: ignore[no-untyped-call]

    def __copy__(self) -> "Sliced":
        """A shallow copy shares everything, the runs too."""
        made = _blank(self.plain_type, tuple(self.sliced_runs))
        made.__dict__.update(self.__dict__)
        return made

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for run, alias in self._aliases():
            # the new run shares the version counter too; the object stays, since the copied root's `ActiveRuns` holds it
            torch.utils.swap_tensors(run, nn.Parameter(alias, run.requires_grad))  # type: ignore[no-untyped-call]

    def _cut(self, role: str) -> tuple[int, Runs, Leaves]:
        """Dimension, runs and leaves of a role; nothing where it is not cut."""
        if role not in self.sliced_runs:
            return 0, (), ()
        cut, leaves = self.sliced_runs[role]
        return cut.dim, cut.runs, leaves


class SlicedLinear(Sliced):
    """The forward of `nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Linear`."""
        if not torch.is_grad_enabled():
            return self.plain_type.forward(self, x)  # type: ignore[no-any-return]
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        (dim, weight_runs, weights), (_, bias_runs, biases) = self._cut("weight"), self._cut("bias")
        return LinearRuns.apply(_cast(x), weight, bias, dim, weight_runs, bias_runs, *weights, *biases)  # type: ignore[no-untyped-call, no-any-return]


class SlicedConvolution(Sliced):
    """The forward of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`."""

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Conv2d`."""
        if not torch.is_grad_enabled():
            return self.plain_type.forward(self, x)  # type: ignore[no-any-return]
        weight, bias = _whole(self, "weight"), self._parameters["bias"]
        if x.ndim < weight.ndim:
            return self.forward(x[None])[0]
        x, geometry = _padded(self, x)
        (dim, weight_runs, weights), (_, bias_runs, biases) = self._cut("weight"), self._cut("bias")
        return ConvolutionRuns.apply(_cast(x), weight, bias, geometry, dim, weight_runs, bias_runs, *weights, *biases)  # type: ignore[no-untyped-call, no-any-return]


def _whole(module: nn.Module, role: str) -> nn.Parameter:
    """The whole parameter, which a cut role's attribute does not give while gradients are recorded."""
    parameter = module._parameters[role]  # noqa: SLF001
    assert parameter is not None
    return parameter


def _cast(x: Tensor) -> Tensor:
    """The input as autocast gives it to a plain layer: cast where autograd sees it."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def _padded(module: Any, x: Tensor) -> tuple[Tensor, Geometry]:
    """The input and the geometry of a convolution whose padding is of zeros and equal on both sides."""
    stride, dilation, groups = module.stride, module.dilation, module.groups
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, (stride, module.padding, dilation, groups)
    margins = module._reversed_padding_repeated_twice  # noqa: SLF001  in functional.pad's order; it also resolves padding="same"
    if module.padding_mode == "zeros" and margins[::2] == margins[1::2]:
        return x, (stride, tuple(margins[::-2]), dilation, groups)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return nn.functional.pad(x, margins, mode=mode), (stride, (0,) * len(stride), dilation, groups)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _kernel(plain: type[nn.Module]) -> type[Sliced]:
    """Which forward a sliced layer has: a faster one where the plain class runs that of torch's own layer."""
    if issubclass(plain, nn.Linear) and plain.forward is nn.Linear.forward:
        return SlicedLinear
    for base in _CONVOLUTIONS:
        if issubclass(plain, base) and plain.forward is base.forward and plain._conv_forward is base._conv_forward:  # noqa: SLF001
            return SlicedConvolution
    return Sliced


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[Sliced]] = {}


def _sliced_class(plain: type[nn.Module], roles: tuple[str, ...]) -> type[Sliced]:
    """The sliced form of a module class with cuts of these roles."""
    roles = tuple(sorted(roles))
    if (plain, roles) not in _CLASSES:
        attributes: dict[str, Any] = {role: property(functools.partial(_assembled, role)) for role in roles}
        attributes |= {"plain_type": plain, "__module__": __name__}
        metaclass: type[type] = type(plain)
        _CLASSES[plain, roles] = metaclass(f"Sliced{plain.__name__}", (_kernel(plain), plain), attributes)
    return _CLASSES[plain, roles]


def _assembled(role: str, module: Sliced) -> Tensor:
    """What code that reads a cut parameter of the module computes with."""
    full = _whole(module, role)
    if not torch.is_grad_enabled():
        return full
    cut, leaves = module.sliced_runs[role]
    return Assemble.apply(full, cut.dim, cut.runs, *leaves)  # type: ignore[no-untyped-call, no-any-return]


def _blank(plain: type[nn.Module], roles: tuple[str, ...]) -> Sliced:
    """A sliced module without its state, for copies and pickles."""
    made = _sliced_class(plain, roles)
    return made.__new__(made)


def _move(tensor: Tensor, target: Tensor) -> None:
    """Gives a tensor the memory of another one; the object and, where torch allows it, its version counter stay."""
    if torch._has_compatible_shallow_copy_type(tensor, target):  # noqa: SLF001  as nn.Module._apply asks
        tensor.data = target
    else:
        torch.utils.swap_tensors(tensor, nn.Parameter(target, tensor.requires_grad))  # type: ignore[no-untyped-call]


def is_sliceable(module: nn.Module, role: str) -> bool:
    """Whether `slice_layer` can cut this parameter. Where it cannot, the whole tensor has to be trained and its update masked.

    It cannot where the parameter is not the module's own, is not yet there, is none of torch's plain dense tensors (DTensor), has no
    dimension to cut, or is read other than as an attribute (recurrent layers); where the class is made for other tricks of this kind
    (parametrizations, pruning, weight norm, scripting, its own copying); and where the forward itself writes to the parameter or its
    gradient is sparse (some embeddings). Whether several modules share the parameter is for the caller to know.
    """
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}  # noqa: SLF001
    parameter = own.get(role)
    if type(parameter) is not nn.Parameter or parameter.layout != torch.strided or parameter.is_meta:
        return False
    if not parameter.is_floating_point() or parameter.ndim == 0:
        return False
    plain = plain_class(module)
    if isinstance(module, (nn.RNNBase, nn.utils.parametrize.ParametrizationList, torch.jit.ScriptModule)) or hasattr(plain, role):
        return False
    if hasattr(plain, "__deepcopy__") or any(getattr(plain, name) is not getattr(nn.Module, name) for name in _COPYING):
        return False
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return not module.sparse and module.max_norm is None
    return _kernel(plain) is Sliced or {"weight"} <= set(own) <= {"weight", "bias"}


_COPYING = ("__reduce__", "__reduce_ex__", "__getstate__", "_apply")
"""What a sliced class overrides, or relies on."""


def slice_layer(module: nn.Module, cuts: Mapping[str, Cut]) -> dict[str, Leaves]:
    """Makes a module compute the gradient of runs of its own parameters only; on a sliced module, other runs take the place of the former.

    Parameters without a cut stay as they are, trainable or not; one that was cut before and no longer is stays frozen. Runs that were
    active before stay the same objects. A gradient that is there is divided among the runs. Call it between a backward and the next
    forward.

    Args:
        module: Its class changes; it keeps everything else.
        cuts: By the name of the parameter within the module, such as ``weight``.

    Returns:
        Per name in `cuts` the runs, which alias the memory of the whole parameter.

    Raises:
        ValueError: A parameter cannot be cut (see `is_sliceable`), or the runs do not fit its shape.
    """
    for role, cut in cuts.items():
        if not is_sliceable(module, role):
            raise ValueError(f"{role!r} of {type(module).__name__} cannot be cut; see is_sliceable")
        cut.check(tuple(_whole(module, role).shape), role)
    if not cuts:
        raise ValueError(f"no parameter of {type(module).__name__} is to be cut; restore_layer makes it a plain layer again")
    active = {role: (cut, tuple(_leaf(module, role, cut, run) for run in cut.runs)) for role, cut in cuts.items()}
    for role in cuts:
        _whole(module, role).requires_grad_(False).grad = None  # noqa: FBT003  torch takes it by position
    module.__class__ = _sliced_class(plain_class(module), tuple(cuts))
    assert isinstance(module, Sliced)
    module.sliced_runs = active
    return {role: leaves for role, (_, leaves) in active.items()}


def _leaf(module: nn.Module, role: str, cut: Cut, run: Run) -> nn.Parameter:
    """The parameter of a run with the gradient it has so far: the one that is there, or else a new one."""
    full = _whole(module, role)
    leaf = nn.Parameter(cut.alias(full, run))
    if full.grad is not None:
        leaf.grad = cut.alias(full.grad, run).clone()
    former, leaves = active_runs(module).get(role, (cut, ()))
    for known, before in zip(leaves, former.runs, strict=False):
        if (former.dim, before) == (cut.dim, run):
            return known
        if former.dim == cut.dim and before[0] <= run[0] and run[1] <= before[1] and known.grad is not None:
            leaf.grad = cut.alias(known.grad, (run[0] - before[0], run[1] - before[0])).clone()
    return leaf


def restore_layer(module: nn.Module) -> None:
    """Gives a sliced module its plain class back. Its parameters are plain again, and those that were cut do not require gradients."""
    if isinstance(module, Sliced):
        module.__class__ = module.plain_type  # type: ignore[assignment]
        del module.__dict__["sliced_runs"]


def active_runs(module: nn.Module) -> Mapping[str, tuple[Cut, Leaves]]:
    """What of each cut parameter is trained, and the leaves of its runs; empty for a plain module."""
    return module.sliced_runs if isinstance(module, Sliced) else {}


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before it was sliced."""
    return module.plain_type if isinstance(module, Sliced) else type(module)


def computes_by_runs(module: nn.Module) -> bool:
    """Whether the sliced form of the module skips the computation of frozen gradients, or only their storage, traffic and update."""
    return _kernel(plain_class(module)) is not Sliced


@contextmanager
def without_runs(model: nn.Module) -> Iterator[None]:
    """While it lasts, the parameters of the model are those of the plain model: for code that pairs them with a copy's by their order."""
    runs = model._modules.pop("active_runs", None)  # noqa: SLF001
    try:
        yield
    finally:
        if runs is not None:
            model._modules["active_runs"] = runs  # noqa: SLF001


class ActiveRuns(nn.Module):
    """Makes the runs of all sliced layers parameters of the root, of which it is the last child.

    Clipping, `zero_grad`, optimizers and DDP then find them, after all original parameters: `AveragedModel` pairs parameters by order.
    It adds nothing to a state_dict, and to the forward of an `nn.Sequential` neither. Moving and copying runs is for their layers to do.

    A deep copy holds none: it is there to be evaluated or averaged (`AveragedModel` would average runs twice), and has no optimizer. An
    `AveragedModel` with `use_buffers=True` pairs buffers by order too, so it needs `without_runs` around its update.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "ActiveRuns":
        return type(self)()

    def replace(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes the place of all runs that were held before.

        Args:
            parameters: By a unique name, in which dots become slashes.

        Raises:
            ValueError: Two names become the same.
        """
        names = {name: name.replace(".", "/") for name in parameters}
        if len(set(names.values())) < len(names):
            raise ValueError(f"names of runs are not unique once dots are slashes: {sorted(names)}")
        self._parameters.clear()
        for name, parameter in parameters.items():
            self.register_parameter(names[name], parameter)

    def forward(self, x: Any) -> Any:
        """The input."""
        return x

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ActiveRuns":  # noqa: ARG002, FBT001, FBT002  the base's
        return self

    def _save_to_state_dict(self, *args: Any) -> None:
        """Nothing: the whole parameters are in the state_dict."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Nothing, likewise."""
