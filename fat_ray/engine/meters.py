"""What one step costs on this rank: operations, communicated bytes, optimizer state, peak memory."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fat_ray.engine.flops import FlopMeter
from fat_ray.fisher.reduce import traffic, world
from fat_ray.freeze.prefix import PrefixMemory

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Bytes:
    """The bytes of a step, as in `events.Step`."""

    comm_bytes: int
    optimizer_bytes: int
    peak_memory_bytes: int


class StepMeter:
    """Measures step after step; what changes only with the active tensors is counted once after each change.

    Args:
        model: The network, not its DDP wrapper.
        optimizer: Whose state is counted.
        device: Where the step runs.
        memory: What is remembered of the frozen prefix; None: nothing.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, memory: PrefixMemory | None = None
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self.flops = FlopMeter(model, memory)
        self._memory = PeakMemory(device)
        self._ddp_bytes: int | None = None
        self._optimizer_bytes: int | None = None
        self._num_states = 0
        self._traffic_before = self._of_this_step = 0

    def begin(self) -> None:
        """To be called first in a step."""
        self._memory.begin()
        self._traffic_before = traffic.num_bytes
        if self._ddp_bytes is None:
            self._ddp_bytes = ddp_bytes(self._model)
        self._of_this_step = self._ddp_bytes

    def changed(self) -> None:
        """To be called when other tensors are trained than before; what the step has cost so far stays."""
        self.flops.forget()
        self._ddp_bytes = self._optimizer_bytes = None

    def end(self) -> Bytes:
        """To be called last in a step, after the optimizer's update."""
        if self._optimizer_bytes is None or len(self._optimizer.state) != self._num_states:
            # what thaws has no gradient in the step in which it does, and gets its state in the next one
            self._num_states = len(self._optimizer.state)
            self._optimizer_bytes = optimizer_bytes(self._optimizer)
        return Bytes(self._of_this_step + traffic.num_bytes - self._traffic_before, self._optimizer_bytes, self._memory.read())


def ddp_bytes(model: nn.Module) -> int:
    """What DDP gives to collectives in a step: all gradients, and before the forward the buffers; 0 without other ranks."""
    if world()[1] == 1:
        return 0
    return sum(p.nbytes for p in model.parameters() if p.requires_grad) + sum(buffer.nbytes for buffer in model.buffers())


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""
    return sum(value.nbytes for value in tree_leaves(list(optimizer.state.values())) if isinstance(value, Tensor))


class PeakMemory:
    """The most memory in use since `begin`.

    On CUDA, what torch's allocator had given out. On the CPU, the resident set of the process, its libraries and data included: on Linux
    the peak since `begin`, exact to some hundred KiB; where the kernel cannot reset its peak, that of the process so far, which an earlier
    run in the same process may have set.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._resets = device.type == "cpu" and _reset_peak()

    def begin(self) -> None:
        """Forgets earlier peaks."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._resets:
            _reset_peak()

    def read(self) -> int:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _resident_peak() if self._resets else _process_peak()


def _reset_peak() -> bool:
    """Sets Linux's peak of the resident set to its present size; whether that was possible."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return _STATUS.is_file()


def _resident_peak() -> int:
    """Linux's peak of the resident set."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024  # "VmHWM:  123 kB"


def _process_peak() -> int:
    """The peak of the resident set since the process began; the unit of ru_maxrss is bytes on macOS and KiB elsewhere."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
