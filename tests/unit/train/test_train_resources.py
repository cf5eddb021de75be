from typing import Any

import pytest
from pydantic import ValidationError

from fat_ray.spec.run import TrainSpec
from fat_ray.train.resources import backend, gpu_of, places, shortage, threads, worker_resources, workers_per_gpu


@pytest.mark.parametrize(("cpus", "expected"), [(0.5, 1), (1.0, 1), (2.9, 2), (8.0, 8)])
def test_threads_are_whole_cpus_and_at_least_one(cpus: float, expected: int) -> None:
    assert threads(TrainSpec(cpus_per_worker=cpus)) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "gloo"),
        ({"gpus_per_worker": 1.0}, "nccl"),
        ({"gpus_per_worker": 0.5}, "gloo"),
        ({"gpus_per_worker": 0.5, "backend": "nccl"}, "nccl"),
        ({"gpus_per_worker": 1.0, "backend": "gloo"}, "gloo"),
    ],
)
def test_nccl_is_for_whole_gpus(given: dict[str, Any], expected: str) -> None:
    assert backend(TrainSpec(**given)) == expected


def test_gpus_are_asked_for_only_when_used() -> None:
    assert worker_resources(TrainSpec(cpus_per_worker=2.0)) == {"CPU": 2.0}
    assert worker_resources(TrainSpec(gpus_per_worker=0.5)) == {"CPU": 1.0, "GPU": 0.5}


@pytest.mark.parametrize(
    ("share", "per_gpu", "devices"),
    [
        (0.5, 2, [0, 0, 1, 1]),
        (0.4, 2, [0, 0, 1, 1]),
        (0.3333, 3, [0, 0, 0, 1]),
        (0.6, 1, [0, 1, 2, 3]),
        (1.0, 1, [0, 1, 2, 3]),
        (2.0, 1, [0, 2, 4, 6]),
    ],
)
def test_shares_of_a_gpu_never_span_two(share: float, per_gpu: int, devices: list[int]) -> None:
    spec = TrainSpec(workers=4, global_batch=8, gpus_per_worker=share)
    assert workers_per_gpu(spec) == per_gpu
    assert [gpu_of(spec, rank) for rank in range(4)] == devices


def test_places_are_counted_by_gpu() -> None:
    node = {"CPU": 64.0, "GPU": 2.0}
    assert [places(TrainSpec(gpus_per_worker=share), node) for share in (0.5, 0.4, 0.3333, 1 / 3, 0.6, 1.0, 2.0)] == [4, 4, 6, 6, 2, 2, 1]
    assert places(TrainSpec(gpus_per_worker=0.5, cpus_per_worker=32.0), node) == 2
    assert places(TrainSpec(gpus_per_worker=0.5), {"CPU": 64.0}) == 0


def test_two_workers_share_one_gpu_and_three_do_not() -> None:
    node = {"CPU": 8.0, "GPU": 1.0}
    assert shortage(TrainSpec(workers=2, gpus_per_worker=0.5), [node]) is None
    assert shortage(TrainSpec(workers=4, gpus_per_worker=0.5), [node]) == (
        "a run needs 4 workers x 0.5 GPUs = 2 GPUs, the cluster has 1 (train.workers, train.gpus_per_worker)"
    )
    wasted = shortage(TrainSpec(workers=5, global_batch=10, gpus_per_worker=0.4), [{"CPU": 8.0, "GPU": 2.0}])
    assert wasted is not None
    assert "2 to a GPU, since a share never spans two" in wasted
    assert "none holds more than 4" in wasted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpus_per_worker": 1.5}, "1.5 must be a whole number, or less than 1 for a share of a GPU"),
        ({"gpus_per_worker": 0.5, "workers": 2, "backend": "nccl"}, "nccl refuses two workers on one GPU"),
    ],
)
def test_what_ray_or_nccl_would_refuse_later_is_refused_now(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSpec(**given)
