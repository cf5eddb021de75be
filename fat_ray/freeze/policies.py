"""From a specification to the policy that it names."""

import copy

from torch import nn

from fat_ray.fisher.groups import build_groups
from fat_ray.freeze.context import PolicyContext, describe, group_spec, prepare_model
from fat_ray.freeze.custom import build_custom
from fat_ray.freeze.fixed import FullFineTuning, keep_only
from fat_ray.freeze.measured import FisherDrift, FishMask, GradientNorm
from fat_ray.freeze.policy import Policy
from fat_ray.freeze.scheduled import FreezeOut, GradualUnfreeze, LinearSchedule, random_matched
from fat_ray.spec.run import FreezeSpec, MethodSpec


def build_policy(spec: FreezeSpec, context: PolicyContext) -> Policy:  # noqa: PLR0911  one policy per case
    """The policy that a specification names.

    Args:
        spec: Its settings.
        context: What it may know of the model and the run.

    Raises:
        PolicyError: It needs something that the model or the run has not; or a user's own cannot be built.
    """
    match spec.policy:
        case "none":
            return FullFineTuning()
        case "fisher_drift":
            return FisherDrift(spec, bury_dead=context.bury_dead)
        case "head_only" | "bitfit" | "norm_only" | "lora":
            return keep_only(spec, context)
        case "linear_schedule":
            return LinearSchedule(spec, context)
        case "freezeout":
            return FreezeOut(spec, context)
        case "gradual_unfreeze":
            return GradualUnfreeze(spec, context)
        case "gradient_norm":
            return GradientNorm(spec, context)
        case "fish_mask":
            return FishMask(spec)
        case "random_matched":
            return random_matched(context)
        case own:
            return build_custom(own, context)


def check_policy(model: nn.Module, spec: MethodSpec, steps: int) -> None:
    """Builds the policy of a run and drops it, so that what is wrong is found before any worker starts.

    Args:
        model: The network of the run; it is not changed.
        spec: Who decides, and how the model is cut.
        steps: Optimizer steps of the run.

    Raises:
        PolicyError: See `prepare_model`, `describe` and `build_policy`.
    """
    freeze = spec.freeze
    prepared = prepare_model(copy.deepcopy(model) if freeze.policy == "lora" else model, freeze, seed=0)
    groups = build_groups(prepared, group_spec(freeze, spec.fisher.groups))
    build_policy(freeze, describe(prepared, groups, freeze, steps=steps))
