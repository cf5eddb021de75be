"""The policies: `none` (full fine-tuning), `fisher_drift` (the method), `random_matched` (its control)."""

from collections.abc import Sequence

import numpy as np

from fat_ray import rules
from fat_ray.freeze.policy import Decision, Observation, Policy
from fat_ray.spec.run import FreezeSpec


class FullFineTuning:
    """Never freezes anything."""

    needs_drift = False

    def is_due(self, step: int) -> bool:  # noqa: ARG002  the protocol's signature
        """Never."""
        return False

    def decide(self, observation: Observation) -> Decision:
        """Freezes nothing."""
        return Decision(np.zeros_like(observation.active))


class FisherDrift:
    """Freezes groups whose smoothed Fisher drift fell below `mean + λ·std` of the active ones (arXiv 2606.10196, Alg. 2).

    Args:
        spec: Threshold, window and limits.
        bury_dead: Whether groups whose Fisher is zero by decree freeze at step 0, as released.
    """

    needs_drift = True

    def __init__(self, spec: FreezeSpec, *, bury_dead: bool = False) -> None:
        self._spec, self._bury_dead = spec, bury_dead

    def is_due(self, step: int) -> bool:
        """Every n steps after the warm-up; at step 0 only to freeze groups without Fisher."""
        if step == 0:
            return self._bury_dead
        return step >= self._spec.warmup_steps and step % self._spec.every == 0

    def decide(self, observation: Observation) -> Decision:
        """See `rules.threshold` and `rules.select`; without any score nothing freezes and there is no threshold."""
        if observation.step == 0:
            return Decision(observation.active & observation.dead)
        eligible = observation.active & np.isfinite(observation.scores)
        if not eligible.any():
            return Decision(np.zeros_like(observation.active))
        tau = rules.threshold(observation.scores, eligible, self._spec.threshold)
        confidence = self._spec.confidence
        upper = observation.scores + confidence * observation.errors if confidence else observation.scores
        chosen = rules.select(upper, observation.active, observation.elements, tau, floor=self._spec.floor, cap=self._spec.cap)
        return Decision(chosen.freeze, tau, chosen.limited_by)


class RandomMatched:
    """Freezes as many elements as a recorded run did, at the same steps, chosen at random: what any drift signal has to beat.

    Args:
        schedule: (step, active elements after the event) of the recorded run, in order.
        seed: Seed of the run; with the number of the event it decides the order of the groups.
    """

    needs_drift = False

    def __init__(self, schedule: Sequence[tuple[int, int]], seed: int) -> None:
        self._targets = dict(schedule)
        self._seed = seed

    def is_due(self, step: int) -> bool:
        """At the steps of the recorded events."""
        return step in self._targets

    def decide(self, observation: Observation) -> Decision:
        """See `rules.select_random`."""
        rng = np.random.default_rng((self._seed, observation.event))
        return Decision(rules.select_random(observation.active, observation.elements, self._targets[observation.step], rng))


def build_policy(spec: FreezeSpec, *, seed: int, follow: Sequence[tuple[int, int]] | None, bury_dead: bool = False) -> Policy:
    """The policy that a specification names.

    Args:
        spec: Its settings.
        bury_dead: See `FisherDrift`.
        seed: Seed of the run.
        follow: For random_matched, the schedule to follow.

    Raises:
        ValueError: random_matched without a schedule.
    """
    match spec.policy:
        case "none":
            return FullFineTuning()
        case "fisher_drift":
            return FisherDrift(spec, bury_dead=bury_dead)
        case "random_matched":
            if follow is None:
                raise ValueError("freeze.policy = random_matched needs a recorded schedule to follow: launch it as a baseline of a study")
            return RandomMatched(follow, seed)
