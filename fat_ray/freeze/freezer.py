"""Fisher-guided freezing in any training loop: arm before the forward, `after_backward()` before clipping and the optimizer's step.

freezer = Freezer(model, optimizer, {"fisher": {"every": 10}, "freeze": {"every": 50}})
for x, y in batches:
optimizer.zero_grad()
freezer.arm(len(x))
loss(model(x), y).backward()
freezer.after_backward()
optimizer.step()
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn

from fat_ray import rules
from fat_ray.errors import DivergedError
from fat_ray.events import Drift, Freeze
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, build_formulas
from fat_ray.fisher.reduce import Ranks, check_agreement, check_layout, world
from fat_ray.fisher.state import Arrays, Floats32, below, prefixed
from fat_ray.freeze.context import describe, group_spec
from fat_ray.freeze.entries import ActiveEntries
from fat_ray.freeze.policies import build_policy
from fat_ray.freeze.policy import Decision, Observation, Policy
from fat_ray.spec.run import MethodSpec

Emit = Callable[[Drift | Freeze], None]
_COUNTERS = ("step", "num_updates", "num_events", "_layout_agreed")


class Freezer:
    """Statistics, decisions and their effect for one model and its optimizer.

    Args:
        model: The network on its device, not its DDP wrapper.
        optimizer: Holds the trainable parameters of `model`.
        spec: How drift is measured and who decides, as a specification or the mapping that a study file would hold.
        process_group: The ranks that train the model together; None: all ranks.
        policy: Who decides instead of the policy that `spec` names.
        seed: Of policies that choose at random.
        follow: For random_matched, the recorded schedule: (step, active elements after the event).
        emit: Receives what was measured and decided.

    Attributes:
        groups: All groups, in network order.
        entries: Which entries may move.
        policy: Who decides.
        step: Steps done, that is calls of `after_backward`.
        num_updates: Drift updates done.
        num_events: Decisions taken.

    Raises:
        pydantic.ValidationError: `spec` is a mapping with faults; all are listed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        spec: MethodSpec | Mapping[str, Any],
        process_group: Ranks = None,
        *,
        policy: Policy | None = None,
        seed: int = 0,
        follow: Sequence[tuple[int, int]] | None = None,
        emit: Emit | None = None,
    ) -> None:
        self.spec = spec = spec if isinstance(spec, MethodSpec) else MethodSpec.model_validate(spec)
        self._model, self._ranks = model, process_group
        self._emit = emit or _ignore
        self._device = next(model.parameters()).device
        self.groups = build_groups(model, group_spec(spec.freeze, spec.fisher.groups))
        bury_dead = spec.fisher.uncovered == "zero"
        self.policy = policy or build_policy(
            spec.freeze, describe(model, self.groups, spec.freeze, seed=seed, follow=follow, bury_dead=bury_dead)
        )
        self.entries = ActiveEntries(model, optimizer, self.groups)
        self.meter = DriftMeter(model, self.groups, spec.fisher, spec.drift, process_group)
        self.collector = Collector(model, self.groups, build_formulas(spec.fisher), halves=self.meter.halves)
        self.history = rules.DriftHistory.empty(len(self.groups))
        self.step = self.num_updates = self.num_events = 0
        self._layout_agreed = False

    def arm(self, examples: int | Share) -> None:
        """Call before each forward; on steps that need no statistics it does nothing.

        Args:
            examples: Examples of the coming micro-batch on this rank; a `Share` where a step has several micro-batches, ranks hold
                different numbers of examples, or the loss is scaled.
        """
        if self._collects() and self.spec.fisher.estimator == "kronecker":
            share = examples if isinstance(examples, Share) else Share(examples, *world(self._ranks))
            self.collector.arm(self.entries.active_layers(), share)

    def after_backward(self) -> bool:
        """Call once per step, when all gradients are there, before clipping and the optimizer's step.

        Returns:
            Whether tensors left or entered autograd: a DDP wrapper must then be dropped and made anew, with `init_sync=False`.

        Raises:
            DivergedError: A statistic is not finite on some rank.
            RankDisagreementError: Ranks have measured or decided differently.
        """
        if self._collects():
            self._measure()
        changed = self.policy.is_due(self.step) and self._decide()
        self.entries.mask_gradients()
        self.step += 1
        return changed

    def state(self) -> Arrays:
        """Counters, active set, history and Fisher statistics between two steps, equal on all ranks; see also `DriftMeter.share`."""
        history = {field.name: getattr(self.history, field.name) for field in fields(self.history)}
        counters = {name: np.array(getattr(self, name)) for name in _COUNTERS}
        return {"active": self.entries.active, **counters, **prefixed("history", history), **prefixed("meter", self.meter.state())}

    def load_state(self, arrays: Arrays, shares: Mapping[str, Callable[[], Floats32]]) -> bool:
        """Goes on where another freezer of the same model, optimizer and specification was; weights must be loaded before.

        Args:
            arrays: What `state` returned.
            shares: See `DriftMeter.load_state`.

        Returns:
            Whether tensors left autograd, as `after_backward`.
        """
        for name in _COUNTERS:
            setattr(self, name, arrays[name].item())
        self.history = rules.DriftHistory(**below("history", arrays))
        self.meter.load_state(below("meter", arrays), shares)
        return self.entries.freeze(self.entries.active & ~arrays["active"])

    def _collects(self) -> bool:
        return "drift" in self.policy.needs and self.step % self.spec.fisher.every == 0

    def _measure(self) -> None:
        """Sums to distances to smoothed drift."""
        drift, before, active = self.spec.drift, self.history.count, self.entries.active
        sums = self.collector.take()
        if not self._layout_agreed:
            check_layout(sums, self.step, self._device, self._ranks)
            self._layout_agreed = True
        found = self.meter.update(sums, self._squared_gradient, active, self._device)
        if not found.finite:
            raise DivergedError(f"the Fisher statistics became NaN or infinite at step {self.step}")
        if self.num_updates == 0 and drift.start == "zero":
            self.history = rules.begin(self.history, active & ~self.meter.dead)
        self.history = rules.observe(self.history, found.distance, found.measured, drift.smoothing, corrected=drift.start == "corrected")
        seen = self.history.count > before
        self._emit(
            Drift(
                step=self.step,
                update=self.num_updates,
                distance=_optional(found.distance, found.measured),
                noise=_optional(found.noise, found.measured),
                smoothed=_optional(self.history.smoothed, seen),
                score=_optional(rules.score(self.history, drift.score), seen),
                active=active.tolist(),
            )
        )
        self.num_updates += 1

    def _squared_gradient(self, name: str) -> rules.Floats:
        gradient = self._model.get_parameter(name).grad
        assert gradient is not None, f"{name} is active and has no gradient"
        squares: rules.Floats = gradient.double().square().contiguous().cpu().numpy()  # sums over it shall not depend on its layout
        return squares

    def _decide(self) -> bool:
        """Scores to a decision that all ranks share, to frozen groups; whether tensors left autograd."""
        started = time.perf_counter()
        observation = self._observe()
        decision = self.policy.decide(observation)
        payload = observation.scores.tobytes() + decision.freeze.tobytes()
        check_agreement(f"freeze decision at step {self.step}", payload, self._device, self._ranks)
        self._layout_agreed = False
        changed = self.entries.freeze(decision.freeze)
        self._emit(self._event(decision, time.perf_counter() - started))
        self.num_events += 1
        return changed

    def _observe(self) -> Observation:
        unknown = np.full(len(self.groups), np.nan)
        return Observation(
            step=self.step,
            event=self.num_events,
            scores=rules.score(self.history, self.spec.drift.score),
            errors=rules.standard_error(self.history),
            dead=self.meter.dead,
            active=self.entries.active.copy(),
            elements=self.entries.elements,
            gradient_norm=unknown,
            previous_gradient_norm=unknown,
            fisher=unknown,
        )

    def _event(self, decision: Decision, decide_s: float) -> Freeze:
        return Freeze(
            step=self.step,
            event=self.num_events,
            frozen=np.flatnonzero(decision.freeze).tolist(),
            frozen_elements=int(self.entries.elements[decision.freeze].sum()),
            active_elements=self.entries.active_elements,
            active_groups=int(self.entries.active.sum()),
            threshold=decision.threshold,
            limited_by=decision.limited_by,
            decide_s=decide_s,
        )


def _ignore(_: Drift | Freeze) -> None:
    """For those who want no events."""


def _optional(values: rules.Floats, known: rules.Bools) -> list[float | None]:
    return [float(value) if is_known else None for value, is_known in zip(values, known, strict=True)]
