from typing import Any

import pytest

from fat_ray.spec.run import TrainSpec
from fat_ray.train.resources import backend, threads, worker_resources


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
