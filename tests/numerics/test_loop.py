"""A whole run in one process: what it emits and in which order, how it ends, and that it is the same run every time."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fat_ray.engine.loop import train
from fat_ray.engine.request import Request
from fat_ray.engine.step import Trainer
from fat_ray.errors import SupersededError
from fat_ray.events import Drift, Eval, Event, Freeze, RunEnd, RunStart, Status, Step
from fat_ray.freeze.measured import FisherDrift
from fat_ray.records.sink import MemorySink
from fat_ray.spec.run import FreezeSpec
from tests.support.jobs import task_of, tiny_job

CPU = torch.device("cpu")


def run(stop: dict[int, Request] | None = None, follow: list[tuple[int, int]] | None = None, **settings: Any) -> tuple[RunEnd, list[Event]]:
    job = tiny_job(Path("unused"), workers=1, **settings).model_copy(update={"follow": follow})
    sink, asked = MemorySink(), iter(range(10_000))
    end = train(
        job,
        task_of(job),
        sink,
        device=CPU,
        stop_request=lambda: (stop or {}).get(next(asked)),
        on_evaluation=lambda metrics: None,
    )
    return end, sink.events


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def deterministic(events: list[Event]) -> list[Any]:
    """Events without what a clock and the operating system say."""
    clocks = {
        "peak_memory_bytes": 0,
        "step_s": 0.0,
        "eval_s": 0.0,
        "decide_s": 0.0,
        "wall_s": 0.0,
        "train_s": 0.0,
        "worker_s": 0.0,
        "started_at": None,
    }
    return [dataclasses.replace(e, **{k: v for k, v in clocks.items() if hasattr(e, k)}) for e in events]


def test_a_run_emits_its_events_in_order() -> None:
    end, events = run(steps=6, evaluate_every=2)
    assert isinstance(events[0], RunStart)
    assert events[-1] is end
    assert end.status is Status.COMPLETED
    assert [step.step for step in of(Step, events)] == list(range(6))
    assert [(e.step, e.split) for e in of(Eval, events)] == [(2, "val"), (4, "val"), (6, "val"), (6, "test")]
    assert [drift.update for drift in of(Drift, events)] == list(range(6))
    assert [freeze.step for freeze in of(Freeze, events)] == [2, 4]


def test_costs_add_up() -> None:
    end, events = run(steps=6)
    steps = of(Step, events)
    total = events[0].total_elements  # type: ignore[union-attr]
    assert end.updates == sum(step.active_elements for step in steps)
    assert end.mean_active == end.updates / 6
    assert end.mean_active_fraction == end.mean_active / total
    assert end.flops == sum(step.flops for step in steps)
    assert (end.comm_bytes, {step.comm_bytes for step in steps}) == (0, {0})
    assert end.optimizer_bytes == max(step.optimizer_bytes for step in steps)
    assert end.peak_memory_bytes == max(step.peak_memory_bytes for step in steps)
    assert end.final["val/f1"] == of(Eval, events)[-2].metrics["f1"]
    assert end.best["val/f1"] == max(e.metrics["f1"] for e in of(Eval, events) if e.split == "val")
    assert end.best["val/loss"] == min(e.metrics["loss"] for e in of(Eval, events) if e.split == "val")


def test_the_active_set_shrinks_and_events_say_by_how_much() -> None:
    _, events = run(steps=8)
    freezes = of(Freeze, events)
    assert any(freeze.frozen for freeze in freezes)
    start = events[0]
    assert isinstance(start, RunStart)
    active = start.total_elements
    gone: set[int] = set()
    for freeze in freezes:
        assert gone.isdisjoint(freeze.frozen)
        gone |= set(freeze.frozen)
        active -= sum(start.groups[group].elements for group in freeze.frozen)
        assert freeze.active_elements == active
        assert freeze.active_groups == len(start.groups) - len(gone)
    assert all(later.active_elements <= earlier.active_elements for earlier, later in pairwise(of(Step, events)))
    assert of(Step, events)[-1].active_elements == active
    assert len({step.flops_forward for step in of(Step, events)}) == 1
    for cost in ("flops_input_gradient", "flops_weight_gradient", "optimizer_bytes"):
        assert all(getattr(later, cost) <= getattr(earlier, cost) for earlier, later in pairwise(of(Step, events))), cost


def test_the_same_seed_is_the_same_run_to_the_bit() -> None:
    first, second, other = (deterministic(run(seed=seed)[1]) for seed in (0, 0, 1))
    assert first == second
    assert [step.loss for step in of(Step, first)] != [step.loss for step in of(Step, other)]


def test_policies_see_the_same_batches() -> None:
    frozen, full = run()[1], run(policy="none")[1]
    before_first_event = slice(0, 2)
    assert [s.loss for s in of(Step, frozen)[before_first_event]] == [s.loss for s in of(Step, full)[before_first_event]]
    assert not of(Drift, full)
    assert not of(Freeze, full)


def test_random_matched_keeps_as_many_elements_as_the_run_it_follows() -> None:
    followed = [(freeze.step, freeze.active_elements) for freeze in of(Freeze, run()[1])]
    _, events = run(policy="random_matched", follow=followed)
    smallest = min(group.elements for group in events[0].groups)  # type: ignore[union-attr]
    reached = [(freeze.step, freeze.active_elements) for freeze in of(Freeze, events)]
    assert [step for step, _ in reached] == [step for step, _ in followed]
    assert all(mine - theirs >= 0 for (_, mine), (_, theirs) in zip(reached, followed, strict=True))
    assert reached[-1][1] - followed[-1][1] < 16 * smallest
    assert not of(Drift, events)


def test_a_nan_ends_the_run_with_its_reason_and_keeps_the_records() -> None:
    end, events = run(trouble={"3": "nan"})
    assert end.status is Status.DIVERGED
    assert end.reason == "the training loss became NaN or infinite at step 3 on 1 of 1 workers"
    assert len(of(Step, events)) == 3
    assert events[-1] is end


@pytest.mark.parametrize(("request_", "status"), [(Request.PRUNE, Status.PRUNED), (Request.STOP, Status.STOPPED)])
def test_a_request_ends_the_run_between_two_steps(request_: Request, status: Status) -> None:
    end, events = run(stop={4: request_})
    assert end.status is status
    assert end.reason == "stopped on request after 5 of 8 steps"
    assert len(of(Step, events)) == 5
    assert {e.split for e in of(Eval, events)} == {"val"}  # a partial run is never shown the test split


def test_a_request_at_the_last_step_comes_too_late() -> None:
    assert run(stop={7: Request.STOP})[0].status is Status.COMPLETED


def test_a_run_that_is_to_leave_says_nothing_more() -> None:
    job = tiny_job(Path("unused"), workers=1)
    sink = MemorySink()
    asked = iter([None, None, Request.LEAVE])
    with pytest.raises(SupersededError):
        train(job, task_of(job), sink, device=CPU, stop_request=lambda: next(asked), on_evaluation=lambda metrics: None)
    assert len(of(Step, sink.events)) == 2
    assert of(RunEnd, sink.events) == []


def test_an_error_is_recorded_and_raised() -> None:
    job = tiny_job(Path("unused"), workers=1, trouble={"1": "raise"})
    sink = MemorySink()
    with pytest.raises(KeyError):
        train(job, task_of(job), sink, device=CPU, stop_request=lambda: None, on_evaluation=lambda metrics: None)
    end = sink.events[-1]
    assert isinstance(end, RunEnd)
    assert end.status is Status.FAILED
    assert end.reason.startswith("KeyError: ")


def test_what_froze_in_a_run_never_moves_again() -> None:
    job = tiny_job(Path("unused"), workers=1, batch_norm=True)
    policy = FisherDrift(FreezeSpec(every=2, warmup_steps=2, threshold=0.5, cap=0.5))
    trainer = Trainer(job, task_of(job), policy=policy, device=CPU, stop_request=lambda: None, emit=lambda event: None)
    frozen_as: dict[int, list[torch.Tensor]] = {}
    for _ in range(12):
        before = {index: values_of(trainer, index) for index in range(len(trainer.freezer.groups))}
        trainer.step()
        for index in np.flatnonzero(~trainer.freezer.entries.active):
            kept = frozen_as.setdefault(int(index), before[int(index)])  # frozen before this step's update
            assert all(torch.equal(now, then) for now, then in zip(values_of(trainer, int(index)), kept, strict=True))
    assert 0 < len(frozen_as) < len(trainer.freezer.groups)
    assert any(not parameter.requires_grad for parameter in trainer.model.parameters())


def values_of(trainer: Trainer, index: int) -> list[torch.Tensor]:
    state = trainer.model.state_dict()
    return [state[m.parameter][m.index].clone() for m in trainer.freezer.groups[index].members]
