"""Remembers what a frozen module returns for each example, by the contents of what it is given, and answers in its place.

An answer is given for a whole batch or not at all: what a module returns for an example may depend, in its last bit, on the size of the
batch. That it depends on nothing else about it is tried out at the first batches of each kind: the module is asked again for half of the
examples, in other places and other company. While answers are given, every so often the module computes nevertheless, and both are
compared.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fat_ray.freeze.digest import Digest, Fingerprint, digest, same_bits
from fat_ray.freeze.examples import Taken, UnsuitableError, has_examples, is_batch, joined, keys, part, take
from fat_ray.freeze.held import normalises_by_batch

CHECK_EVERY = 32
"""Every so many answers are compared with what the module computes."""

TRIES = 8
"""So many batches of each kind are tried out. Kernels that treat the rest of a division apart (silu on the CPU) differ for few values."""

Compute = Callable[..., Any]


Tell = Callable[[str], None]


class Tags:
    """Which digests stand for the examples of a tensor that a module has just returned: the next module need not read it."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def put(self, tensor: Tensor, digests: list[Digest]) -> None:
        """Notes them for as long as the tensor is there and nobody writes to it."""
        self._known[tensor] = (tensor._version, digests)  # noqa: SLF001

    def get(self, tensor: Tensor) -> list[Digest] | None:
        """What was noted."""
        version, digests = self._known.get(tensor, (None, None))
        return digests if version == tensor._version else None  # noqa: SLF001


@dataclass
class Shared:
    """What the memories of one model have in common.

    Attributes:
        limit: Bytes that they may hold.
        tell: Told in words when one gives up, and why.
        used: Bytes that they hold.
        in_training: Whether the model is being trained; else everything is computed.
        computes: Whether everything is computed nevertheless.
        tags: See there.
    """

    limit: int
    tell: Tell
    used: int = 0
    in_training: bool = True
    computes: bool = False
    tags: Tags = field(default_factory=Tags)


@dataclass(frozen=True)
class _Question:
    """A call of the module: what it is given, and a key for each example."""

    given: Taken
    count: int
    plan: Digest
    keys: list[Digest]


@dataclass
class _Form:
    """What the module returns for batches of one kind, but for the contents, and how many of them were tried out."""

    returned: Taken
    strides: tuple[tuple[int, ...], ...]
    plan: Digest
    num_tries: int = 0


class Recall:
    """The memory of one module.

    Args:
        path: Its name, for messages.
        body: The module; its parameters, buffers and modes decide what it returns.
        shared: What it has in common with other memories.

    Attributes:
        body: See above.
        spared: How often the module was not computed, less the times that it was computed to try it out, since this was last set to 0.
    """

    def __init__(self, path: str, body: nn.Module, shared: Shared) -> None:
        self.path, self.body, self.spared, self._shared = path, body, 0, shared
        self._modules = list(body.modules())
        self._weights, self._version = Fingerprint(), next(_VERSIONS)
        self._forms: dict[Digest, _Form] = {}
        self._answers: dict[Digest, list[Tensor]] = {}
        self._num_answered = 0
        self.off = False

    def __call__(self, compute: Compute, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the module returns.

        Args:
            compute: The module's own forward.
            args: What it is given.
            kwargs: Likewise, by name.
        """
        if self.off or not self._is_steady():
            return compute(*args, **kwargs)
        try:
            question = self._ask(args, kwargs)
            if question is None:
                return compute(*args, **kwargs)
            answers = [self._answers.get(key) for key in question.keys]
            if any(answer is None for answer in answers):
                return self._learn(question, compute)
            return self._answer(question, answers, compute)  # type: ignore[arg-type]
        except UnsuitableError as error:
            self.give_up(str(error))
            return compute(*args, **kwargs)

    def give_up(self, reason: str) -> None:
        """Forgets everything, and lets the module compute from now on."""
        self.off = True
        self.forget()
        self._shared.tell(f"{self.path} is no longer remembered: {reason}")

    def forget(self) -> None:
        """Frees what is held."""
        self._shared.used -= sum(_nbytes(answer) for answer in self._answers.values())
        self._answers.clear()
        self._forms.clear()
        self._version = next(_VERSIONS)

    def _is_steady(self) -> bool:
        """Whether the module is called in training, as it is written, with statistics that stand still."""
        if self._shared.computes or not self._shared.in_training:
            return False
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active():  # noqa: SLF001
            return False
        if torch.is_inference_mode_enabled() or any(normalises_by_batch(module) for module in self._modules):
            return False
        return not any(inner._forward_hooks or inner._forward_pre_hooks for inner in self._modules[1:])  # noqa: SLF001  they want to be called

    def _ask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Question | None:
        given = take((args, dict(kwargs)))
        tensors = given.tensors
        if not tensors or any(tensor.requires_grad for tensor in tensors):  # then an active layer comes before
            return None
        if self._weights.changed([*self.body.parameters(), *self.body.buffers()]):
            self.forget()
        count = tensors[0].shape[0] if tensors[0].ndim else 1
        if not count:
            return None
        kind = tensors[0].device.type
        modes = bytes(module.training for module in self._modules)
        autocast = repr((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))).encode()
        plan = digest(given.plan(count), modes, autocast)
        return _Question(given, count, plan, keys(tensors, count, plan, self._shared.tags.get))

    def _answer(self, question: _Question, answers: Sequence[list[Tensor]], compute: Compute) -> Any:
        form = self._forms[question.plan]
        tensors = [joined(parts, strides) for parts, strides in zip(zip(*answers, strict=True), form.strides, strict=True)]
        self._num_answered += 1
        if self._num_answered % CHECK_EVERY == 0:
            computed = _call(compute, question.given)
            if not same_bits(take(computed).tensors, tensors):
                self.give_up(f"it returns other bits for the same examples; up to {CHECK_EVERY} answers before may have been wrong")
            else:
                self._tag(question, take(computed).tensors)
            return computed
        self.spared += 1
        self._tag(question, tensors)
        return form.returned.with_tensors(tensors)

    def _learn(self, question: _Question, compute: Compute) -> Any:
        before = _surroundings(question.given.tensors)
        value = _call(compute, question.given)
        try:
            self._keep(question, take(value), compute, before)
        except UnsuitableError as error:
            self.give_up(str(error))
        return value

    def _keep(self, question: _Question, returned: Taken, compute: Compute, before: list[Tensor]) -> None:
        """Keeps what the module returned, if that is all that it did."""
        tensors, given = returned.tensors, question.given.tensors
        if not same_bits(before, _surroundings(given)):
            raise UnsuitableError("it draws random numbers, or writes to what it is given")
        storages = [tensor.untyped_storage().data_ptr() for tensor in tensors]
        if not tensors or len({*storages}) < len(tensors) or any(tensor.untyped_storage().data_ptr() in storages for tensor in given):
            raise UnsuitableError("it returns no tensors of its own")
        if not all(is_batch(tensor, question.count) for tensor in tensors):
            raise UnsuitableError("it does not return one result per example")
        form = self._forms.setdefault(question.plan, _form(returned, question.count))
        if form.plan != returned.plan(question.count):
            raise UnsuitableError("it returns something else for batches of the same kind")
        if form.num_tries < TRIES:
            form.num_tries += 1
            self._try_out(question, tensors, compute)
        for index, key in enumerate(question.keys):
            if key not in self._answers:
                self._add(key, [part(tensor, index) for tensor in tensors])
        self._tag(question, tensors)

    def _add(self, key: Digest, answer: list[Tensor]) -> None:
        size = _nbytes(answer)
        if self._shared.used + size <= self._shared.limit:
            self._shared.used += size
            self._answers[key] = answer
        elif not self._num_answered:
            raise UnsuitableError(
                f"freeze.cache_prefix_bytes = {self._shared.limit} are full with {len(self._answers)} of its examples, "
                "and no batch came again: raise it, unless examples are augmented at random"
            )

    def _try_out(self, question: _Question, tensors: Sequence[Tensor], compute: Compute) -> None:
        """Asks for the second half of the examples twice, in reverse: other places, other company."""
        count = question.count
        if count == 1:
            return
        order = ([*range(count - 1, count // 2 - 1, -1)] * 2)[:count]
        moved = [_moved(tensor, order) if has_examples(tensor, count) else tensor for tensor in question.given.tensors]
        self.spared -= 1
        args, kwargs = question.given.with_tensors(moved)
        if not same_bits(take(compute(*args, **kwargs)).tensors, [_moved(tensor, order) for tensor in tensors]):
            raise UnsuitableError("what it returns for an example depends on the other examples of the batch, or on its place among them")

    def _tag(self, question: _Question, tensors: Sequence[Tensor]) -> None:
        for number, tensor in enumerate(tensors):
            source = f"{self._version} {number}".encode()
            self._shared.tags.put(tensor, [digest(source, key) for key in question.keys])


_VERSIONS = itertools.count()
"""One for each module with each of its weights: what another one returns is never taken for its output."""

_MARK = torch.empty(0)
"""Stands for a tensor."""


def _form(returned: Taken, count: int) -> _Form:
    empty = Taken(tuple(_MARK if isinstance(leaf, Tensor) else leaf for leaf in returned.leaves), returned.spec)
    return _Form(empty, tuple(tensor.stride() for tensor in returned.tensors), returned.plan(count))


def _call(compute: Compute, given: Taken) -> Any:
    args, kwargs = given.with_tensors(given.tensors)
    return compute(*args, **kwargs)


def _moved(tensor: Tensor, order: list[int]) -> Tensor:
    chosen = [tensor[index] for index in order]
    return joined(chosen, tensor.stride()) if is_batch(tensor, len(order)) else torch.stack(chosen)


def _surroundings(given: Sequence[Tensor]) -> list[Tensor]:
    """What a module might change beside what it returns: random generators, and how often each tensor that it is given was written to."""
    devices = sorted({tensor.device.index for tensor in given if tensor.is_cuda})
    versions = torch.tensor([tensor._version for tensor in given])  # noqa: SLF001  as autograd does
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices), versions]


def _nbytes(answer: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in answer)
