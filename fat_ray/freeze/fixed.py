"""Policies that decide once, before the first update, by what a group is rather than by what it does."""

import numpy as np

from fat_ray.errors import PolicyError
from fat_ray.fisher.groups import Group
from fat_ray.freeze.context import PolicyContext
from fat_ray.freeze.lora import is_adapter
from fat_ray.freeze.policy import Bools, Decision, Observation, Policy
from fat_ray.spec.run import FreezeSpec


class FullFineTuning(Policy):
    """Never freezes anything."""

    def is_due(self, step: int) -> bool:  # noqa: ARG002  the protocol's signature
        """Never."""
        return False

    def decide(self, observation: Observation) -> Decision:
        """Freezes nothing."""
        return Decision(np.zeros_like(observation.active))


class KeepOnly(Policy):
    """Freezes at step 0 whatever is not kept.

    Args:
        keep: Per group, whether it stays active; at least one does.
    """

    def __init__(self, keep: Bools) -> None:
        self._keep = keep

    def is_due(self, step: int) -> bool:
        """At step 0 only."""
        return step == 0

    def decide(self, observation: Observation) -> Decision:
        """Freezes the others."""
        return Decision(observation.active & ~self._keep)


def keep_only(spec: FreezeSpec, context: PolicyContext) -> KeepOnly:
    """One of ``head_only``, ``bitfit`` (arXiv 2106.10199), ``norm_only`` (arXiv 2003.00152) and ``lora`` (arXiv 2106.09685).

    Raises:
        PolicyError: The model has nothing of the kind that shall stay active.
    """
    with_head = spec.policy == "head_only" or spec.train_head
    kept = [(with_head and context.in_head(group.layer)) or _is_kept(spec.policy, group, context) for group in context.groups]
    if not any(kept):
        raise PolicyError(f"freeze.policy = {spec.policy}: no group would stay active: the model has no such parameters (see freeze.head)")
    return KeepOnly(np.array(kept))


def _is_kept(policy: str, group: Group, context: PolicyContext) -> bool:
    match policy:
        case "bitfit":
            return all(_is_bias(member.role) for member in group.members)
        case "norm_only":
            return group.layer in context.norms
        case "lora":
            return all(is_adapter(member.parameter) for member in group.members)
        case _:
            return False


def _is_bias(role: str) -> bool:
    """`bias`, and those of attention and recurrent layers: `in_proj_bias`, `bias_ih_l0`."""
    return role == "bias" or role.endswith("_bias") or role.startswith("bias_")
