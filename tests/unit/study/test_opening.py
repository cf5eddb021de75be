"""Every policy that a study may meet is built once before anything starts."""

from pathlib import Path

import pytest
from torch import nn

from fat_ray.errors import PolicyError
from fat_ray.freeze import policies
from fat_ray.spec.run import MethodSpec
from fat_ray.spec.study import StudySpec
from fat_ray.study.opening import opened
from tests.support.small_studies import small_study

SEARCHED = '{"name": "a", "search": {"freeze.policy": {"type": "categorical", "choices": ["none", "tests.support.own_policies:fails"]}}}'


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fat_ray.tasks.registry.check_task", lambda _: nn.Sequential(nn.Linear(4, 4)))


def test_each_searched_policy_is_checked(tmp_path: Path) -> None:
    spec = StudySpec.model_validate_json(SEARCHED)
    with (
        pytest.raises(PolicyError, match=r"own_policies:fails: the call with the context failed: OSError"),
        opened(spec, "", tmp_path / "a", []),
    ):
        pytest.fail("it was opened")
    assert list(tmp_path.iterdir()) == []


def test_the_policy_of_a_baseline_is_checked(tmp_path: Path) -> None:
    spec = small_study(baselines=["none", {"name": "mine", "policy": "tests.support.own_policies:fails"}])
    with pytest.raises(PolicyError, match=r"own_policies:fails"), opened(spec, "", tmp_path / "a", []):
        pytest.fail("it was opened")
    assert list(tmp_path.iterdir()) == []


def test_without_such_a_search_the_base_policy_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def check(_: nn.Module, spec: MethodSpec, steps: int) -> None:
        seen.append((spec.freeze.policy, steps))

    monkeypatch.setattr(policies, "check_policy", check)
    spec = small_study()
    with opened(spec, "", tmp_path / "a", []):
        assert seen == [("fisher_drift", spec.train.steps), ("none", spec.train.steps)]
