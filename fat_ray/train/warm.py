"""Warm workers: the processes of a trial slot are kept from one trial to the next. The only module that uses internals of Ray.

A stock trial starts nine processes that import torch, 14 to 19 s on two cores; a warm one starts none after the first of its slot.
Three things differ from `TorchTrainer` of Ray 2.60:

- the controller runs in the trial's process instead of an actor of its own, so that reports reach Tune by a plain call;
- the workers are placed in bundles 1 to n of the placement group that Tune reserved for the trial (`trial_resources`), so that Tune
  counts, gang-schedules and frees them: when the trial's actor goes, they go;
- when a run ends well, its workers and the actor that synchronises them stay, in a module global of the trial's process, for the
  next trial there (`TuneConfig(reuse_actors=True)`). After any failure they are killed, and the next trial starts new ones.

A placement group that lost a node is not waited for, although Ray mends it when there is room: two trials that each hold a part and wait
for the rest would wait for ever. The trial gives it back, and Tune starts it in another one.

Each class says what it relies upon. `fat_ray.train.run.resolve` keeps other versions of Ray away from this module.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, worker_group
from ray.train.v2._internal.execution.worker_group.placement_group_handle import PlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2._internal.execution.worker_group.worker import Worker
from ray.train.v2._internal.util import bundle_to_remote_args
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed

from fat_ray.train.kept import Process

WAKE_S = 10.0
"""How long a kept worker may take to answer before new ones are started in its place."""
SHORTEST_POLL_S, LONGEST_POLL_S = 0.005, 0.05
"""Time between two questions to the workers, each of which takes both sides half a millisecond."""
LOOK_S = 1.0
"""Time between two looks at the placement group while new workers start."""


class Lane:
    """Workers that wait for the next run. They tidy up meanwhile.

    Args:
        key: What the next run must have in common with the last one.
        workers: The workers.
        sync_actor: What synchronises them.
    """

    def __init__(self, key: tuple[object, ...], workers: list[Any], sync_actor: Any) -> None:
        self.key, self.workers, self.sync_actor = key, workers, sync_actor
        self._tidied = [worker.actor.execute.remote(_tidy) for worker in workers]

    def wake(self) -> bool:
        """Whether all workers are alive, and nothing is left of the last run."""
        try:
            left = [what for answer in ray.get(self._tidied, timeout=WAKE_S) for what in answer]
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return False
        if left:
            _SLOT.complaint = f"new workers were started, since the run before it has left something in its process: {left[0]}"
        return not left

    def kill(self) -> None:
        """Ends the workers at once."""
        _kill([*(worker.actor for worker in self.workers), self.sync_actor])


class _Slot:
    """The lane of this process, which is that of one trial actor; empty while a run uses it.

    Attributes:
        complaint: Why the last lane could not be used, if that is the fault of a run.
    """

    def __init__(self) -> None:
        self._lane: Lane | None = None
        self.complaint = ""

    def put(self, lane: Lane) -> None:
        self._lane = lane

    def take(self, key: tuple[object, ...]) -> Lane | None:
        """The lane if it fits and lives; one that does not is killed, since the new workers need its place."""
        (lane, self._lane), self.complaint = (self._lane, None), ""
        if lane is None or (lane.key == key and lane.wake()):
            return lane
        lane.kill()
        return None


_SLOT = _Slot()


def complaint() -> str:
    """Why the run that was trained last in this process needed new workers, if that was the fault of the one before it; else empty."""
    return _SLOT.complaint


_PROCESS: list[Process] = []
"""In a worker: how it was before its first run."""


def _remember() -> None:
    """Runs in a new worker."""
    _PROCESS.append(Process())


def _tidy() -> list[str]:
    """Runs in a kept worker; returns what is left of the last run.

    Ray destroys the process group of several workers only, and a second one cannot be made beside it.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return _PROCESS[0].tidy()


def _is_whole(placement_group: Any) -> bool:
    """Whether all of its nodes are there, as far as Ray has noticed."""
    return bool(ray.util.placement_group_table(placement_group)["state"] == "CREATED")


class _TrialPlacementGroup(PlacementGroupHandle):  # type: ignore[misc]
    """The trial's own placement group, lent: it is ready unless a node left, and Tune removes it.

    Relies on `PlacementGroupHandle` being all that a worker group asks of its placement group, and on `wait` being asked before workers
    are started.
    """

    def __init__(self, placement_group: Any) -> None:
        self._placement_group = placement_group

    @property
    def placement_group(self) -> Any:
        return self._placement_group

    def ready(self) -> Any:
        return self._placement_group.ready()

    def wait(self, timeout_seconds: float = 30) -> bool:  # noqa: ARG002 - the interface of the base class
        return _is_whole(self._placement_group)

    def shutdown(self) -> None:
        """Nothing: it is Tune's."""


@dataclass(frozen=True)
class _KeptState(WorkerGroupState):  # type: ignore[misc]
    """The state of a worker group that ended well. Relies on a worker group killing its workers by `WorkerGroupState.shutdown` alone."""

    key: tuple[object, ...]

    def shutdown(self) -> None:
        """Keeps the workers instead of killing them."""
        _SLOT.put(Lane(self.key, self.workers, self.sync_actor))


def _metadata(actors: list[Any], placement_group: Any) -> list[Any]:
    """What new workers say of themselves once they are there."""
    asked = waiting = [actor.get_metadata.remote() for actor in actors]
    remembered = [actor.execute.remote(_remember) for actor in actors]
    while waiting and _is_whole(placement_group):
        _, waiting = ray.wait(asked, num_returns=len(asked), timeout=LOOK_S)
    try:
        if not waiting:
            ray.get(remembered)
            return list(ray.get(asked))
    except ray.exceptions.RayActorError as error:
        _kill(actors)
        raise WorkerGroupStartupFailedError("a worker died while it started") from error
    _kill(actors)
    raise WorkerGroupStartupTimeoutError(len(actors))


def _kill(actors: list[Any]) -> None:
    for actor in actors:
        ray.kill(actor)


class WarmWorkerGroup(WorkerGroup):  # type: ignore[misc]
    """A worker group in the trial's placement group that takes over kept workers and leaves its own behind.

    Relies on `_start_impl` creating the placement group, the synchronisation actor and the workers in that order, by
    `_create_placement_group`, `SynchronizationActor.options(…).remote(…)` of its module, and `_create_workers`; on a worker being an actor
    of `_worker_cls` with its metadata; and on everything that a worker knows of a run being set anew by `_init_train_context`.
    """

    _lane: Lane | None = None
    _worker_group_state: Any  # of the base class

    def _key(self) -> tuple[object, ...]:
        context = self._worker_group_context
        reserved = ray.util.get_current_placement_group()
        return context.num_workers, tuple(sorted(context.resources_per_worker.items())), reserved.id.hex()

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        self._lane = _SLOT.take(self._key())
        try:
            with _kept_sync_actor(self._lane):
                super()._start_impl(worker_group_state_builder)
        except Exception:
            if self.has_started():  # the builder kills the workers of a group that has not
                self.abort()
            raise

    def _create_placement_group(self, *_: Any) -> PlacementGroupHandle:
        return _TrialPlacementGroup(ray.util.get_current_placement_group())

    def _create_workers(self, num_workers: int, placement_group: Any, resources_per_worker: dict[str, float], **_: Any) -> list[Any]:
        """As the base class does, but in bundles 1 to n, since bundle 0 is the driver's; and without waiting for a node that left."""
        if self._lane is None:
            environment = self._get_worker_runtime_env(custom_runtime_env=self._train_run_context.run_config.worker_runtime_env)
            make = ray.remote(runtime_env=environment, **bundle_to_remote_args(resources_per_worker))(self._worker_cls)
            bundles = range(1, num_workers + 1)
            actors = [
                make.options(scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group, bundle)).remote() for bundle in bundles
            ]
            started = [
                Worker(actor, metadata, resources_per_worker, placement_group_bundle_index=bundle)
                for actor, metadata, bundle in zip(actors, _metadata(actors, placement_group), bundles, strict=True)
            ]
        else:
            started = self._lane.workers
        return list(WorkerGroup._assign_worker_ranks(started))  # noqa: SLF001 - sets what depends on the run

    def shutdown(self) -> None:
        """Keeps the workers if all of them have finished without an error, else kills them."""
        status = self._latest_poll_status
        if self.has_started() and status is not None and status.finished and not status.errors:
            self._worker_group_state = _KeptState(**vars(self._worker_group_state), key=self._key())
        super().shutdown()


class _KeptSyncActor:
    """Stands in for the actor class `SynchronizationActor`: what it makes is the actor that is there already."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def options(self, **_: Any) -> "_KeptSyncActor":
        return self

    def remote(self, **_: Any) -> Any:
        return self._actor


@contextmanager
def _kept_sync_actor(lane: Lane | None) -> Iterator[None]:
    """Makes `_start_impl` take over the synchronisation actor, for which it has no hook; one controller runs in a process at a time."""
    if lane is None:
        yield
        return
    original = worker_group.SynchronizationActor
    worker_group.SynchronizationActor = _KeptSyncActor(lane.sync_actor)
    try:
        yield
    finally:
        worker_group.SynchronizationActor = original


class _ReservedScalingPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """Asks no autoscaler for workers, which would cost an actor: Tune's placement group has asked already.

    Relies on the policy requesting resources in these two methods, and on cancelling nothing when it has requested nothing.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Requests nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Requests nothing."""


class _WarmController(TrainController):  # type: ignore[misc]
    """Asks the workers more often while they report, so that neither a report nor the end of a run, after its last, has to wait.

    Relies on `worker_group_cls` being the hook for another worker group, on `_poll_workers` asking all workers once, and on
    `_health_check_interval_s` being what it waits for before.
    """

    worker_group_cls = WarmWorkerGroup
    _reported_s = float("-inf")

    async def _poll_workers(self) -> Any:
        quiet_s = time.monotonic() - self._reported_s
        self._health_check_interval_s = min(max(quiet_s / 4, SHORTEST_POLL_S), LONGEST_POLL_S)
        answers = await super()._poll_workers()
        if any(status.training_report for status in answers.worker_statuses.values()):
            self._reported_s = time.monotonic()
        return answers


class WarmTorchTrainer(TorchTrainer):  # type: ignore[misc]
    """`TorchTrainer` for a Tune trial whose placement group holds its workers in bundles 1 to n.

    Relies on `fit` calling the two methods below, and raising the error of the result that the second returns.
    """

    def _create_default_callbacks(self) -> list[Any]:
        """Without the cleaner of placement groups (Tune owns this one) and the manager of Ray Data sets (there are none): two actors."""
        unneeded = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unneeded)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """Runs the controller here instead of in an actor."""
        return asyncio.run(_control({**arguments, "scaling_policy": _ReservedScalingPolicy(self.scaling_config)}))


async def _control(arguments: dict[str, Any]) -> Any:
    controller = _WarmController(**arguments)
    try:
        await controller.run()
    except BaseException:  # the controller handles every Exception itself: the process is ending
        if (group := controller.get_worker_group()) is not None:
            group.abort()
        raise
    return controller.get_result()
