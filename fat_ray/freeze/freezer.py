"""Fisher-guided freezing in any training loop: arm before the forward, `after_backward()` before clipping and the optimizer's step.

    freezer = Freezer(model, optimizer, {"fisher": {"every": 10}, "freeze": {"every": 50}})
    for x, y in batches:
        optimizer.zero_grad()
        freezer.arm(len(x))
        loss(model(x), y).backward()
        freezer.after_backward()
        optimizer.step()

`model.state_dict()` is at all times that of the plain model. Under DDP, when `after_backward` returns True, drop the wrapper, then wrap
`model` again with `init_sync=False`. Under FSDP2 (`fully_shard`, before the optimizer is made) tensors freeze as wholes, so groups must not
divide them (`fisher: {groups: {blocks: 1}}`), and nothing has to be wrapped again. Buffers do not freeze (see `freeze.entries`) but for the
statistics of norms, if `freeze.frozen_statistics` says so. What the frozen prefix returns can be remembered: see `freeze.prefix`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fat_ray import rules
from fat_ray.errors import DivergedError, InputError, SpecError
from fat_ray.events import Drift, Freeze, Notice
from fat_ray.fisher.collector import Collector, Share, Sums
from fat_ray.fisher.flat import Arrays, below
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, build_formulas
from fat_ray.fisher.reduce import Ranks, check_agreement, check_layout, world
from fat_ray.fisher.state import Floats32
from fat_ray.freeze.context import describe, group_spec
from fat_ray.freeze.entries import ActiveEntries
from fat_ray.freeze.gradients import MeanGradients
from fat_ray.freeze.held import hold_statistics, let_go
from fat_ray.freeze.policies import build_policy
from fat_ray.freeze.policy import Decision, Observation, Policy
from fat_ray.freeze.positions import PositionCounter
from fat_ray.freeze.prefix import PrefixMemory
from fat_ray.spec.run import MethodSpec
from fat_ray.spec.wording import problems_of

log = logging.getLogger(__name__)

Emit = Callable[[Drift | Freeze | Notice], None]
_COUNTERS = ("step", "num_updates", "num_events", "_layout_agreed")


class Freezer:
    """Statistics, decisions and their effect for one model and its optimizer.

    Args:
        model: The network on its device, not its DDP wrapper; what `torch.compile` made of it counts as itself.
        optimizer: Holds the trainable parameters of `model`.
        spec: How drift is measured and who decides, as a specification or the mapping that a study file would hold.
        process_group: The ranks that train the model together; None: all ranks.
        policy: Who decides instead of the policy that `spec` names, such as `freeze.scheduled.RandomMatched(schedule, seed)`.
        steps: Optimizer steps of the whole run, for policies that have to know.
        seed: Of policies that choose at random.
        emit: Receives what was measured and decided, and what is remembered.

    Attributes:
        ranks: The ranks that train the model together; None: all ranks.
        groups: All groups, in network order.
        entries: Which entries may move.
        policy: Who decides.
        memory: What the frozen prefix has returned; None where nothing is remembered.
        step: Steps done, that is calls of `after_backward`.
        num_updates: Drift updates done.
        num_events: Decisions taken.

    Raises:
        SpecError: `spec` is a mapping with faults; all are listed.
        InputError: Model and optimizer do not fit (see `freeze.entries.ActiveEntries`), or the policy cannot be built for them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        spec: MethodSpec | Mapping[str, Any],
        process_group: Ranks = None,
        *,
        policy: Policy | None = None,
        steps: int | None = None,
        seed: int = 0,
        emit: Emit | None = None,
    ) -> None:
        if isinstance(model, DistributedDataParallel):
            raise InputError("model is a DistributedDataParallel wrapper: give the Freezer the network inside, model.module")
        model = getattr(model, "_orig_mod", model)  # as `torch.compile` keeps it
        self.spec = spec = spec if isinstance(spec, MethodSpec) else _checked(spec)
        self.ranks, self._emit, self._model = process_group, emit or _ignore, model
        self.groups = build_groups(model, group_spec(spec.freeze, spec.fisher.groups))
        self.entries = ActiveEntries(model, optimizer, self.groups)
        self._device = next(model.parameters()).device
        self.policy = policy or self._build_policy(model, steps, seed)
        self.meter = DriftMeter(model, self.groups, spec.fisher, spec.drift, process_group)
        self.collector = Collector(model, self.groups, build_formulas(spec.fisher), halves=self.meter.halves)
        self._gradients = MeanGradients(self.entries, self.groups)
        self._positions = PositionCounter(model)
        self._previous_norm = np.full(len(self.groups), np.nan)
        self.history = rules.DriftHistory.empty(len(self.groups))
        self.step = self.num_updates = self.num_events = 0
        self._layout_agreed = False
        limit = spec.freeze.cache_prefix_bytes
        self.memory = PrefixMemory(model, limit, self._tell) if limit else None
        self._prefix_is_planned = False
        self._settle()

    def _build_policy(self, model: nn.Module, steps: int | None, seed: int) -> Policy:
        freeze, bury_dead = self.spec.freeze, self.spec.fisher.uncovered == "zero"
        return build_policy(freeze, describe(model, self.groups, freeze, steps=steps, seed=seed, bury_dead=bury_dead))

    @property
    def frontier(self) -> str | None:
        """The first layer with an active entry: what lies before it runs without autograd. None while nothing is frozen."""
        return self.entries.frontier

    def arm(self, examples: int | Share) -> None:
        """Call before each forward; on steps that need no statistics it does nothing.

        Args:
            examples: Examples of the coming micro-batch on this rank; a `Share` where a step has several micro-batches, ranks hold
                different numbers of examples, or the loss is scaled.
        """
        if self.memory is not None:
            if not self._prefix_is_planned:
                self.memory.plan()  # only now modules are in the modes in which they are trained
                self._prefix_is_planned = True
            self.memory.begin()
        share = examples if isinstance(examples, Share) else Share(examples, *world(self.ranks))
        self._gradients.arm(share)
        if self.num_events == 0 and self.policy.is_due(self.step):
            self._positions.arm()
        if self._collects() and self.spec.fisher.estimator == "kronecker":
            self.collector.arm(self.entries.active_layers(), share)

    def remember_nothing(self, reason: str) -> None:
        """Takes `freeze.cache_prefix_bytes` back, for a reason that is told."""
        self._unsettle()
        self.memory = None
        self._settle()
        self._tell(f"nothing is remembered: {reason}")

    def after_backward(self) -> bool:
        """Call once per step, when all gradients are there, before clipping and the optimizer's step.

        Returns:
            Whether tensors left or entered autograd: a DDP wrapper must then be dropped and made anew, with `init_sync=False`.

        Raises:
            DivergedError: A statistic is not finite on some rank.
            RankDisagreementError: Ranks have measured or decided differently.
        """
        sums = self._collected() if self._collects() else {}
        if self._measures():
            self._measure(sums)
        changed = self.policy.is_due(self.step) and self._decide(sums)
        self.entries.scale_updates(self.policy.lr_factors(self.step))
        self.entries.mask_gradients()
        self.step += 1
        return changed

    def state(self) -> Arrays:
        """Counters, active set, history and Fisher statistics between two steps, equal on all ranks; see also `DriftMeter.share`."""
        history = {field.name: getattr(self.history, field.name) for field in fields(self.history)}
        counters = {name: np.array(getattr(self, name)) for name in _COUNTERS}
        parts = {"entries": self.entries.state(), "history": history, "meter": self.meter.state()}
        named = {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        return {"previous_norm": self._previous_norm, **counters, **named}

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
        self._previous_norm = arrays["previous_norm"]
        self._unsettle()
        changed = self.entries.load_state(below("entries", arrays))
        self._settle()
        return changed

    def _unsettle(self) -> None:
        """Makes all modules what they were made as, but for slices: before entries change."""
        if self.memory is not None:
            self.memory.release()
            self._prefix_is_planned = False
        let_go(self._model)

    def _settle(self) -> None:
        """What follows from the entries that are active now."""
        if self.spec.freeze.frozen_statistics == "hold":
            hold_statistics(self._model)

    def _tell(self, text: str) -> None:
        log.info("frozen prefix: %s", text)
        self._emit(Notice(self.step, "prefix", text))

    def _measures(self) -> bool:
        wanted = "drift" in self.policy.needs or self.spec.fisher.record == "always"
        return wanted and self.step % self.spec.fisher.every == 0

    def _collects(self) -> bool:
        return self._measures() or ("fisher" in self.policy.needs and self.policy.is_due(self.step))

    def _collected(self) -> Sums:
        """What this rank has seen; all ranks have seen the same layers."""
        sums = self.collector.take()
        if not self._layout_agreed:
            check_layout(sums, self.step, self._device, self.ranks)
            self._layout_agreed = True
        return sums

    def _measure(self, sums: Sums) -> None:
        """Sums to distances to smoothed drift."""
        drift, before, active = self.spec.drift, self.history.count, self.entries.active
        found = self.meter.update(sums, self._gradients.squares, active, self._device)
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

    def _decide(self, sums: Sums) -> bool:
        """Scores to a decision that all ranks share, to frozen and thawed groups; whether tensors left or entered autograd."""
        started = time.perf_counter()
        observation = self._observe(sums)
        decision = self.policy.decide(observation)
        active = observation.active & ~decision.freeze
        if decision.thaw is not None:
            active |= decision.thaw
        payload = observation.scores.tobytes() + decision.freeze.tobytes() + active.tobytes()
        check_agreement(f"freeze decision at step {self.step}", payload, self._device, self.ranks)
        self._layout_agreed = False
        if self.num_events == 0:
            self.entries.positions = self._positions.take(self._device, self.ranks)
        self._unsettle()
        changed = self.entries.set_active(active)
        self._settle()
        self._emit(self._event(decision, time.perf_counter() - started))
        self.num_events += 1
        return changed

    def _observe(self, sums: Sums) -> Observation:
        active, unknown = self.entries.active, np.full(len(self.groups), np.nan)
        needs, previous = self.policy.needs, self._previous_norm
        norm = self._previous_norm = self._gradients.norms() if "gradient_norm" in needs else unknown
        fisher = self.meter.mean_values(sums, self._gradients.squares, active, self._device) if "fisher" in needs else unknown
        return Observation(
            step=self.step,
            event=self.num_events,
            scores=rules.score(self.history, self.spec.drift.score),
            errors=rules.standard_error(self.history),
            dead=self.meter.dead,
            active=active.copy(),
            elements=self.entries.elements,
            gradient_norm=norm,
            previous_gradient_norm=previous,
            fisher=fisher,
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
            frontier=self.frontier,
        )


def _checked(given: Mapping[str, Any]) -> MethodSpec:
    try:
        return MethodSpec.model_validate(given)
    except ValidationError as error:
        problems = problems_of(error, given, MethodSpec).values()
        raise SpecError("Freezer", [replace(problem, field=problem.field or "spec") for problem in problems]) from None


def _ignore(_: Drift | Freeze | Notice) -> None:
    """For those who want no events."""


def _optional(values: rules.Floats, known: rules.Bools) -> list[float | None]:
    return [float(value) if is_known else None for value, is_known in zip(values, known, strict=True)]
