"""Room on the cluster while a study runs: trials wait as long as others hold it, start again when they lose it, and end when it is gone."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.stopper import Stopper

from fat_ray.spec.study import StudySpec
from fat_ray.study.ledger import Close, Ledger
from fat_ray.train.placement import LOOK_S, Watch, alive_nodes
from fat_ray.train.resources import Resources

LEAVE_S = 30.0
"""How long trials that the cluster can no longer hold may take to leave by themselves."""


class Room(Callback):  # type: ignore[misc]
    """Closes a study whose trials the cluster can no longer hold, and tells a trial that starts again that it does.

    Args:
        spec: The study; all its trials need the same.
        ledger: Its trials.
        nodes: Asked for the nodes of the cluster.
    """

    def __init__(self, spec: StudySpec, ledger: Ledger, nodes: Callable[[], Sequence[Resources]] = alive_nodes) -> None:
        self._ledger, self._timeout_s = ledger, spec.budget.placement_timeout_s
        self._watch = Watch(spec.train, self._timeout_s, nodes)
        self._next_look_s, self._waiting_since_s, self._told = float("-inf"), float("inf"), False

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """Tune calls this about ten times per second."""
        self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        """Looks at the cluster, at most once per `LOOK_S`."""
        if self._ledger.close is not None or now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_S
        problem = self._watch.look(now_s)
        if problem is not None:
            self._give_up(problem)
        self._tell_of_waiting(now_s)

    def _give_up(self, problem: str) -> None:
        self._ledger.close = Close.NO_ROOM
        self._ledger.failure = f"the study ended early: {problem}"
        for trial in self._ledger.handed_out():
            trial.failure = problem

    def _tell_of_waiting(self, now_s: float) -> None:
        """Says once that all trials have been waiting, most likely for others on the cluster."""
        live = list(self._ledger.live())
        if not live or any(trial.started_s is not None for trial in live):
            self._waiting_since_s = float("inf")
            return
        self._waiting_since_s = min(self._waiting_since_s, now_s)
        if not self._told and now_s - self._waiting_since_s >= self._timeout_s:
            self._told = True
            self._ledger.warn(f"for {self._timeout_s:g} s no trial could start: others held the cluster, or its processes start slowly")

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002 - Tune's interface
        """The process of a trial died, most likely with its node. It waits for another place, and is told how often that happened."""
        trial.config["restarts"] = trial.config.get("restarts", 0) + 1
        ours = self._ledger.of(trial.trial_id)
        ours.started_s, ours.failure = None, None


class Closing(Stopper):  # type: ignore[misc]
    """Ends the experiment of a study that is closed when all trials that are left only wait, which Tune alone would do for ever.

    Args:
        ledger: The study's trials.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._closed_s: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - Tune's interface
        """No trial is ever killed for what it reports."""
        return False

    def stop_all(self) -> bool:
        """Whether nothing is left to wait for. Tune asks at each of its steps."""
        if self._ledger.close is None:
            return False
        if self._closed_s is None:
            self._closed_s = time.monotonic()
        if self._ledger.close is Close.NO_ROOM and time.monotonic() - self._closed_s > LEAVE_S:
            return True
        return all(trial.started_s is None for trial in self._ledger.live())
