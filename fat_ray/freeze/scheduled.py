"""Policies whose decisions are known before training: functions of the step alone."""

from collections.abc import Sequence

import numpy as np

from fat_ray import rules
from fat_ray.errors import PolicyError
from fat_ray.freeze.context import PolicyContext
from fat_ray.freeze.policy import Decision, Floats, Observation, Policy
from fat_ray.spec.run import FreezeSpec


class LinearSchedule(Policy):
    """Freezes early groups first, so that the active fraction of elements falls linearly to `final_active`.

    Args:
        spec: `every`, `warmup_steps`, `until` and `final_active`.
        context: The run's steps.

    Raises:
        PolicyError: The number of steps is not known.
    """

    def __init__(self, spec: FreezeSpec, context: PolicyContext) -> None:
        self._spec = spec
        self._end = spec.until * known_steps(spec, context)

    def is_due(self, step: int) -> bool:
        """Every n steps after the warm-up."""
        return step >= self._spec.warmup_steps and step % self._spec.every == 0

    def decide(self, observation: Observation) -> Decision:
        """Freezes from the front down to this step's target."""
        start = self._spec.warmup_steps
        share = min((observation.step - start) / (self._end - start), 1.0) if self._end > start else 1.0
        target = (1 - (1 - self._spec.final_active) * share) * observation.elements.sum()
        return Decision(rules.select_first(observation.active, observation.elements, target))


class FreezeOut(Policy):
    """Anneals the learning rate of each layer to zero, early layers first, and freezes it there (Brock et al., arXiv 1706.04983).

    Layer i of L freezes at the fraction `t_i = t_0 + (1 - t_0)·i/(L-1)` of the steps, cubed if `cubed`; until then its learning rate is
    scaled by `½(1 + cos(π t/t_i))`, and divided by t_i if `scaled`. The last layer trains to the end.

    Args:
        spec: `first_freeze`, `cubed` and `scaled`.
        context: The layers and the run's steps.

    Raises:
        PolicyError: The number of steps is not known.
    """

    def __init__(self, spec: FreezeSpec, context: PolicyContext) -> None:
        steps = known_steps(spec, context)
        fractions = np.linspace(1.0, spec.first_freeze, len(context.layers))[::-1] ** (3 if spec.cubed else 1)
        self._fraction: Floats = fractions[context.depth]
        self._period = self._fraction * steps
        self._end = np.ceil(self._period - 1e-9).astype(np.int64)  # 0.55 * 100 is a little more than 55
        self._scaled = spec.scaled
        self._due = {int(end) for end in self._end if end < steps}

    def is_due(self, step: int) -> bool:
        """When the learning rate of a layer has reached zero."""
        return step in self._due

    def decide(self, observation: Observation) -> Decision:
        """Freezes the layers whose time has come."""
        return Decision(observation.active & (self._end <= observation.step))

    def lr_factors(self, step: int) -> Floats:
        """Cosine annealing, layer by layer."""
        cosine = 0.5 * (1.0 + np.cos(np.pi * np.minimum(step / self._period, 1.0)))
        factors: Floats = np.where(step < self._end, cosine / self._fraction if self._scaled else cosine, 0.0)
        return factors


class GradualUnfreeze(Policy):
    """Starts with the head alone and thaws the rest stage by stage, the last first (ULMFiT; Howard & Ruder, arXiv 1801.06146).

    Args:
        spec: `thaw_every` and `stages`.
        context: The layers and the head.

    Raises:
        PolicyError: The head owns no group.
    """

    def __init__(self, spec: FreezeSpec, context: PolicyContext) -> None:
        body = [layer for layer in context.layers if not context.in_head(layer)]
        stages = [part for part in np.array_split(np.arange(len(body))[::-1], spec.stages) if part.size]
        thaw = {body[index]: (number + 1) * spec.thaw_every for number, part in enumerate(stages) for index in part}
        self._thaw = np.array([thaw.get(group.layer, 0) for group in context.groups], np.int64)
        if self._thaw.all():
            raise PolicyError(f"freeze.policy = {spec.policy}: no group lies in the head {', '.join(context.head)} (see freeze.head)")
        self._due = {0, *self._thaw.tolist()}

    def is_due(self, step: int) -> bool:
        """At step 0, and when a stage thaws."""
        return step in self._due

    def decide(self, observation: Observation) -> Decision:
        """Freezes all but the head at step 0; later only thaws."""
        awake = self._thaw <= observation.step
        if observation.step == 0:
            return Decision(observation.active & ~awake)
        return Decision(np.zeros_like(awake), thaw=awake & ~observation.active)


class RandomMatched(Policy):
    """Freezes as many elements as a recorded run did, at the same steps, chosen at random: what any drift signal has to beat.

    Args:
        schedule: (step, active elements after the event) of the recorded run, in order.
        seed: Seed of the run; with the number of the event it decides the order of the groups.
    """

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


def random_matched(context: PolicyContext) -> RandomMatched:
    """The control of a recorded run.

    Raises:
        PolicyError: There is no recorded schedule.
    """
    if context.follow is None:
        raise PolicyError("freeze.policy = random_matched needs a recorded schedule to follow: launch it as a baseline of a study")
    return RandomMatched(context.follow, context.seed)


def known_steps(spec: FreezeSpec, context: PolicyContext) -> int:
    """The number of steps of the run.

    Raises:
        PolicyError: It is not known.
    """
    if context.steps is None:
        raise PolicyError(f"freeze.policy = {spec.policy} needs the number of steps of the whole run; give steps, such as steps=1000")
    return context.steps
