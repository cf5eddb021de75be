"""A user's own policy: found by its name, and held to what every policy promises."""

from importlib.metadata import entry_points
from typing import Any, cast, get_args

import numpy as np

from fat_ray import plugins
from fat_ray.errors import PolicyError
from fat_ray.freeze.context import PolicyContext
from fat_ray.freeze.policy import Bools, Decision, Floats, Need, Observation, Policy
from fat_ray.spec.policy import ENTRY_POINTS


def build_custom(name: str, context: PolicyContext) -> "CustomPolicy":
    """Calls the user's function with the context.

    Args:
        name: `module:function`, or the name of an entry point.
        context: What policies may know.

    Raises:
        PolicyError: The function cannot be found, fails, or returns something that is no policy.
    """
    make = plugins.resolve("freeze.policy", _reference(name), "a policy", PolicyError)
    made = plugins.call(f"freeze.policy = {name}: the call with the context", PolicyError, make, context)
    missing = [method for method in ("is_due", "decide") if not callable(getattr(made, method, None))]
    if missing:
        kind = type(made).__name__
        raise PolicyError(f"freeze.policy = {name} returned a {kind} that lacks {', '.join(missing)} of fat_ray.freeze.policy.Policy")
    needs: object = getattr(made, "needs", frozenset())
    known = get_args(Need)
    if not isinstance(needs, set | frozenset) or not needs <= set(known):
        raise PolicyError(f"freeze.policy = {name}: needs must be a frozenset of {', '.join(known)}, not {needs!r}")
    return CustomPolicy(name, made, frozenset(needs), len(context.groups))


def _reference(name: str) -> str:
    if ":" in name:
        return name
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return f"{entry.module}:{entry.attr}"
    raise PolicyError(f"freeze.policy = {name}: no package installed here announces it as an entry point in the group {ENTRY_POINTS}")


class CustomPolicy(Policy):
    """Passes every question on and checks the answer.

    Args:
        name: As the specification gives it.
        policy: What the user's function returned.
        needs: What must be measured for it.
        num_groups: Number of groups of the model.

    Raises:
        PolicyError: From each method, when an answer is impossible or the user's code fails.
    """

    def __init__(self, name: str, policy: Any, needs: frozenset[Need], num_groups: int) -> None:
        self._name, self._policy, self.needs, self._num_groups = name, policy, needs, num_groups

    def is_due(self, step: int) -> bool:
        """As the user's policy says."""
        return bool(self._call("is_due", step))

    def decide(self, observation: Observation) -> Decision:
        """The user's decision, if it can be carried out."""
        decision = self._call("decide", observation)
        if not isinstance(decision, Decision):
            raise self._error(observation.step, f"decide returned a {type(decision).__name__}, not a fat_ray.freeze.policy.Decision")
        active, thaw = observation.active, np.zeros_like(observation.active) if decision.thaw is None else decision.thaw
        for field, chosen, allowed in (("freeze", decision.freeze, active), ("thaw", thaw, ~active)):
            self._check(observation.step, field, chosen, allowed)
        if not ((active & ~decision.freeze) | thaw).any():
            raise self._error(observation.step, "nothing would stay active")
        return decision

    def lr_factors(self, step: int) -> Floats | None:
        """The user's factors, if there are any."""
        if not hasattr(self._policy, "lr_factors"):
            return None
        factors = self._call("lr_factors", step)
        if factors is None:
            return None
        usable = isinstance(factors, np.ndarray) and factors.shape == (self._num_groups,) and factors.dtype == np.float64
        if not usable or not np.isfinite(factors).all() or (factors < 0).any():
            raise self._error(step, f"lr_factors must be an array of {self._num_groups} finite floats of at least 0, one per group")
        return cast("Floats", factors)

    def _call(self, method: str, argument: Any) -> Any:
        return plugins.call(f"freeze.policy = {self._name}: {method}", PolicyError, getattr(self._policy, method), argument)

    def _check(self, step: int, field: str, chosen: Any, allowed: Bools) -> None:
        if not isinstance(chosen, np.ndarray) or chosen.dtype != np.bool_ or chosen.shape != allowed.shape:
            raise self._error(step, f"{field} must be an array of {allowed.size} bools, one per group")
        if (chosen & ~allowed).any():
            state = "frozen already" if field == "freeze" else "active already"
            raise self._error(step, f"{field} names groups that are {state}: {np.flatnonzero(chosen & ~allowed).tolist()}")

    def _error(self, step: int, what: str) -> PolicyError:
        return PolicyError(f"freeze.policy = {self._name}: at step {step}: {what}")
