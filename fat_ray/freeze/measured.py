"""Policies that look at what was measured: drift, gradients or Fisher information."""

import numpy as np

from fat_ray import rules
from fat_ray.freeze.context import PolicyContext
from fat_ray.freeze.policy import Decision, Observation, Policy
from fat_ray.spec.run import FreezeSpec


class FisherDrift(Policy):
    """Freezes groups whose smoothed Fisher drift fell below `mean + λ·std` of the active ones (arXiv 2606.10196, Alg. 2).

    Args:
        spec: Threshold, window and limits.
        bury_dead: Whether groups whose Fisher is zero by decree freeze at step 0, as released.
    """

    needs = frozenset(("drift",))

    def __init__(self, spec: FreezeSpec, *, bury_dead: bool = False) -> None:
        self._spec, self._bury_dead = spec, bury_dead
        self._rule = rules.DriftRule(spec.threshold, spec.floor, spec.cap, spec.confidence)

    def is_due(self, step: int) -> bool:
        """Every n steps after the warm-up; at step 0 only to freeze groups without Fisher."""
        return self._bury_dead if step == 0 else bool(rules.drift_is_due(step, self._spec.every, self._spec.warmup_steps))

    def decide(self, observation: Observation) -> Decision:
        """See `rules.decide_by_drift`; without any score nothing freezes and there is no threshold."""
        if observation.step == 0:
            return Decision(observation.active & observation.dead)
        chosen = rules.decide_by_drift(observation.scores, observation.errors, observation.active, observation.elements, self._rule)
        tau = float(chosen.threshold)
        return Decision(chosen.freeze, tau if np.isfinite(tau) else None, str(chosen.limited_by))


class GradientNorm(Policy):
    """Freezes layers from the front whose gradient norm has settled (AutoFreeze; Liu et al., arXiv 2102.01386).

    A layer's change is `|‖g'‖ - ‖g‖| / ‖g'‖` with its gradients g' at the decision before and g at this one. The first layers of the
    network whose changes lie below a percentile of the active layers' changes freeze, up to the first that does not. Nothing freezes at the
    first decision. Unlike there, g is the gradient of one step, not the sum over the steps between.

    Args:
        spec: `every`, `warmup_steps`, `percentile` and `floor`.
        context: The layers.
    """

    needs = frozenset(("gradient_norm",))

    def __init__(self, spec: FreezeSpec, context: PolicyContext) -> None:
        self._spec, self._depth = spec, context.depth

    def is_due(self, step: int) -> bool:
        """Every n steps after the warm-up."""
        return step >= self._spec.warmup_steps and step % self._spec.every == 0

    def decide(self, observation: Observation) -> Decision:
        """See `rules.select_settled`."""
        active = observation.active
        layers, layer = np.unique(self._depth[active], return_inverse=True)
        norms = (observation.previous_gradient_norm, observation.gradient_norm)
        before, now = (np.sqrt(np.bincount(layer, norm[active] ** 2, layers.size)) for norm in norms)
        elements = np.bincount(layer, observation.elements[active], layers.size)
        number, tau = rules.select_settled(
            rules.relative_change(before, now), elements, self._spec.percentile, target=self._spec.floor * observation.elements.sum()
        )
        freeze = active & np.isin(self._depth, layers[:number])
        return Decision(freeze, tau if np.isfinite(tau) else None)


class FishMask(Policy):
    """Keeps the groups of the largest mean Fisher information, decided once (FISH mask; Sung et al., arXiv 2111.09839).

    There single entries are kept; here groups are.

    Args:
        spec: `warmup_steps`, when it decides, and `keep`.
    """

    needs = frozenset(("fisher",))

    def __init__(self, spec: FreezeSpec) -> None:
        self._spec = spec

    def is_due(self, step: int) -> bool:
        """At the end of the warm-up, once."""
        return step == self._spec.warmup_steps

    def decide(self, observation: Observation) -> Decision:
        """See `rules.select_smallest`."""
        target = self._spec.keep * observation.elements.sum()
        return Decision(rules.select_smallest(observation.fisher, observation.active, observation.elements, target))
