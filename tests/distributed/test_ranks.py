"""Several ranks are one trainer: the same statistics as one process on the joined batch, one decision, one model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fat_ray.engine.loop import train
from fat_ray.engine.step import Trainer, wrap
from fat_ray.errors import RankDisagreementError
from fat_ray.events import Drift, Eval, Freeze, Status, Step
from fat_ray.fisher.collector import Collector, Share
from fat_ray.fisher.groups import build_groups
from fat_ray.fisher.meter import DriftMeter, build_formulas
from fat_ray.fisher.reduce import check_agreement, world
from fat_ray.freeze.measured import FisherDrift
from fat_ray.records.sink import MemorySink
from fat_ray.spec.run import FreezeSpec, GroupSpec, RunSpec
from tests.support.distributed import run_distributed
from tests.support.factors import FactorState, collect
from tests.support.jobs import task_of, tiny_job

CPU = torch.device("cpu")
BATCH = 8


def network_without_batch_statistics() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))


def collect_share(parts: int = 1, halves: bool = True) -> list[FactorState]:
    """Factors of a fixed batch of which each rank sees its share."""
    model = wrap(network_without_batch_statistics())
    x, y = torch.randn(BATCH, 2, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(BATCH) % 4
    inner = model.module if hasattr(model, "module") else model
    assert isinstance(inner, nn.Module)
    return collect(inner, lambda _, a, b: functional.cross_entropy(model(a), b), x, y, parts=parts, halves=halves)


def collect_whole_and_in_parts() -> list[list[FactorState]]:
    """With one backward, and with as many micro-batches as this rank has examples."""
    return [collect_share(parts) for parts in (1, BATCH // world()[1])]


@pytest.mark.parametrize("world_size", [2, 4])
def test_factors_and_their_halves_do_not_depend_on_ranks_or_micro_batches(world_size: int) -> None:
    alone = collect_share()
    for found in (way for ways in run_distributed(collect_whole_and_in_parts, world_size) for way in ways):
        for half, expected in zip(found, alone, strict=True):
            assert half.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(half[key], value, rtol=1e-4, atol=1e-12)


def measure(preset: str, parts: int) -> tuple[list[list[float]], list[str]]:
    """Distances of three updates on batches of which each rank sees its share, and the names of the states that this rank keeps."""
    model, spec = network_without_batch_statistics(), RunSpec.model_validate({"preset": preset})
    wrapped, groups = wrap(model), build_groups(model, GroupSpec(blocks=2))
    meter = DriftMeter(model, groups, spec.fisher, spec.drift)
    collector = Collector(model, groups, build_formulas(spec.fisher), halves=meter.halves)
    rank, size = world()
    found = []
    for number in range(3):
        x, y = torch.randn(BATCH, 2, 8, 8, generator=torch.Generator().manual_seed(number))[rank::size], torch.arange(BATCH)[rank::size] % 4
        for part, (inputs, targets) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
            share = Share(len(x), rank, size, part * len(inputs), len(inputs))
            collector.arm(list(collector.layers), share)
            (functional.cross_entropy(wrapped(inputs), targets) / parts).backward()
        update = meter.update(collector.take(), lambda name: np.zeros(0), ~meter.dead, CPU)
        found.append(update.distance.tolist())
    return found, [name for name in meter.share() if name.startswith("compared/")]


def measure_whole_and_in_parts() -> list[Any]:
    return [measure(preset, parts) for preset, parts in (("corrected", 1), ("corrected", BATCH // world()[1]), ("released", 1))]


@pytest.mark.parametrize("world_size", [2, 4])
def test_drift_does_not_depend_on_ranks_or_micro_batches_and_each_state_is_kept_once(world_size: int) -> None:
    alone = measure_whole_and_in_parts()
    ranks = run_distributed(measure_whole_and_in_parts, world_size)
    for way, (expected, names) in enumerate(alone):
        assert all(rank[way][0] == ranks[0][way][0] for rank in ranks)  # to the bit
        np.testing.assert_allclose(ranks[0][way][0], expected, rtol=0, atol=1e-6)
        assert any(expected[-1])
        assert sorted(name for rank in ranks for name in rank[way][1]) == sorted(names)


def whole_run() -> dict[str, Any]:
    job = tiny_job(Path("unused"), workers=world()[1], dropout=0.0)
    sink = MemorySink()
    end = train(job, task_of(job), sink, device=CPU, stop_request=lambda: None, on_evaluation=lambda metrics: None)
    return {
        "status": end.status,
        "losses": [event.loss for event in sink.events if isinstance(event, Step)],
        "flops": [event.flops for event in sink.events if isinstance(event, Step)],
        "scores": [event.score for event in sink.events if isinstance(event, Drift)],
        "frozen": [event.frozen for event in sink.events if isinstance(event, Freeze)],
        "evals": [dict(event.metrics) for event in sink.events if isinstance(event, Eval)],
    }


def test_two_ranks_agree_to_the_bit_and_follow_one_process() -> None:
    first, second = run_distributed(whole_run, 2)
    assert first == second
    alone = whole_run()
    assert first["status"] is Status.COMPLETED
    torch.testing.assert_close(first["losses"][:2], alone["losses"][:2], rtol=1e-5, atol=1e-6)  # before rounding can move a decision
    assert first["flops"][0] == alone["flops"][0]
    for joined, single in zip(first["scores"][1], alone["scores"][1], strict=True):
        assert joined == pytest.approx(single, abs=0.05)  # rounding may move a value over the edge of one of 8 bins
    assert any(first["frozen"])


def train_and_freeze() -> list[torch.Tensor]:
    job = tiny_job(Path("unused"), workers=world()[1], dropout=0.0)
    policy = FisherDrift(FreezeSpec(every=2, warmup_steps=2, threshold=1.0, cap=0.9))
    trainer = Trainer(job, task_of(job), policy=policy, device=CPU, stop_request=lambda: None, emit=lambda event: None)
    for _ in range(8):
        trainer.step()
    return [parameter.detach() for parameter in trainer.model.parameters()]


def test_ranks_hold_one_model_after_freezing() -> None:
    first, second = run_distributed(train_and_freeze, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def one_rank_diverges() -> tuple[str, str, int]:
    job = tiny_job(Path("unused"), workers=2, trouble={"3": "nan"}, trouble_rank=1)
    sink = MemorySink()
    end = train(job, task_of(job), sink, device=CPU, stop_request=lambda: None, on_evaluation=lambda metrics: None)
    return end.status.value, end.reason, end.steps


def test_a_nan_on_one_rank_ends_the_run_on_all() -> None:
    expected = ("diverged", "the training loss became NaN or infinite at step 3 on 1 of 2 workers", 3)
    assert run_distributed(one_rank_diverges, 2) == [expected, expected]


def disagree() -> str:
    check_agreement("the weather", b"same", CPU)
    try:
        check_agreement("freeze decision at step 12", b"rank 1" if world()[0] == 1 else b"others", CPU)
    except RankDisagreementError as error:
        return str(error)
    return "nobody noticed"


def test_a_rank_that_decides_differently_is_named_on_every_rank() -> None:
    messages = run_distributed(disagree, 3)
    assert len(set(messages)) == 1
    assert messages[0].startswith("freeze decision at step 12: rank 1 disagrees with rank 0")
