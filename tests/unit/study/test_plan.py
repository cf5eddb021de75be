"""The arithmetic of clusters: how many trials fit, and the numbers in the refusal when none does."""

import pytest

from fat_ray.errors import ResourceError
from fat_ray.study.plan import plan
from tests.support.small_studies import small_study


def concurrency(nodes: list[dict[str, float]], concurrency: int | None = None, **train: float) -> int:
    return plan(small_study(train=train, budget={"trials": 3, "concurrency": concurrency}), nodes).concurrency


def test_trials_fill_the_cluster() -> None:
    assert concurrency([{"CPU": 2.0}], workers=2) == 1
    assert concurrency([{"CPU": 8.0}], workers=2) == 4
    assert concurrency([{"CPU": 8.0}], workers=2, cpus_per_worker=3.0) == 1
    assert concurrency([{"CPU": 2.0}], workers=2, cpus_per_worker=0.5) == 2
    assert concurrency([{"CPU": 1.0}], workers=1, cpus_per_worker=1 / 3) == 3


def test_workers_spread_over_nodes_but_none_is_split() -> None:
    assert concurrency([{"CPU": 3.0}, {"CPU": 3.0}], workers=2, cpus_per_worker=2.0) == 1
    assert concurrency([{"CPU": 4.0}, {"CPU": 4.0}], workers=4, cpus_per_worker=2.0) == 1
    assert concurrency([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 3.0}], workers=2, gpus_per_worker=1.0) == 2


def test_the_budget_limits_concurrency() -> None:
    assert concurrency([{"CPU": 8.0}], 3, workers=2) == 3
    assert concurrency([{"CPU": 8.0}], 9, workers=2) == 4


@pytest.mark.parametrize(
    ("nodes", "train", "message"),
    [
        ([{"CPU": 2.0}], {"workers": 2, "cpus_per_worker": 4.0}, "needs 2 workers x 4 CPUs = 8 CPUs, the cluster has 2"),
        ([{"CPU": 1.0}], {"workers": 1, "cpus_per_worker": 1.5}, "needs 1 worker x 1.5 CPUs = 1.5 CPUs, the cluster has 1"),
        ([{"CPU": 64.0}], {"workers": 2, "gpus_per_worker": 1.0}, "needs 2 workers x 1 GPUs = 2 GPUs, the cluster has 0"),
        ([{"CPU": 3.0}] * 2, {"workers": 3, "cpus_per_worker": 2.0}, "of the cluster's 2 nodes none holds more than 1"),
        ([{"CPU": 8.0}, {"GPU": 2.0}], {"workers": 1, "gpus_per_worker": 1.0}, "1 worker with 1 CPUs and 1 GPUs each on one node"),
        ([], {"workers": 1}, "needs 1 worker x 1 CPUs = 1 CPUs, the cluster has 0"),
    ],
)  # fmt: skip
def test_an_infeasible_study_is_refused_with_the_numbers(nodes: list[dict[str, float]], train: dict[str, float], message: str) -> None:
    with pytest.raises(ResourceError) as caught:
        plan(small_study(train={"global_batch": 12, **train}), nodes)
    assert message in str(caught.value)
