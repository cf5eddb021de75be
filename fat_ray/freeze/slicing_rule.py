"""When slicing a tensor is quicker than training it whole and masking its update. `bench/slicing.py` measures what this predicts."""

import math

from torch import nn

from fat_ray.freeze.kernels import is_cheap
from fat_ray.freeze.sliced import Cut, computes_by_runs

RUN_S = 100e-6
"""What each run after the first costs: one more tensor for autograd, clipping and the optimizer."""

ENTRY_S = 3e-9
"""What a frozen entry costs that is trained and masked: its gradient, its optimizer state, its part of the mask."""

POSITION_S = 2 / 75e9
"""What a frozen entry's gradient costs per position: two operations at the speed of one core."""

DEPTHWISE_POSITION_S = 2 / 5e9
"""The same where each output channel reads one input channel by more taps than `kernels.is_cheap`: torch has no quick kernel for that."""


def worth_slicing(module: nn.Module, role: str, cut: Cut, positions: int | None) -> bool:
    """Whether slicing saves at least the time that it costs.

    A first run costs about what masking does, and is always worth it: it also saves optimizer state and traffic. Of every further run,
    frozen entries have to make up for the cost. Where the module's own forward runs (norms, embeddings), or the gradient is cheap (small
    depthwise convolutions), all of it is computed, and only the update is saved.

    Args:
        module: Plain or sliced already.
        role: Which of its parameters.
        cut: What stays active.
        positions: How often a step uses each entry: examples times tokens or pixels of the output. None: not known; counts as one.
    """
    shape = module._parameters[role].shape  # type: ignore[union-attr]  # noqa: SLF001
    active = sum(stop - start for start, stop in cut.runs)
    frozen = (shape[cut.dim] - active) * math.prod(shape[: cut.dim]) * math.prod(shape[cut.dim + 1 :])
    each_s = ENTRY_S
    if computes_by_runs(module) and not is_cheap(shape, getattr(module, "groups", 1)):
        each_s += (positions or 1) * (DEPTHWISE_POSITION_S if len(shape) > 2 and shape[1] == 1 else POSITION_S)
    return frozen * each_s >= (len(cut.runs) - 1) * RUN_S
