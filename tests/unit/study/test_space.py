"""The search space for Optuna, and values of a trial put into the run."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fat_ray.errors import SpecError
from fat_ray.spec.run import RunSpec
from fat_ray.spec.space import Choice, FloatRange, IntRange
from fat_ray.study.space import optuna_space, with_params
from tests.support.small_studies import small_study


def test_distributions_are_translated() -> None:
    space = optuna_space(
        {
            "a": FloatRange(type="float", low=0.1, high=1.0, log=True),
            "b": IntRange(type="int", low=2, high=9, step=3),
            "c": Choice(type="categorical", choices=["x", None, 3]),
            "d": IntRange(type="int", low=1, high=64, log=True),
        }
    )
    assert space == {
        "a": FloatDistribution(0.1, 1.0, log=True),
        "b": IntDistribution(2, 8, step=3),
        "c": CategoricalDistribution(("x", None, 3)),
        "d": IntDistribution(1, 64, log=True),
    }


@pytest.mark.parametrize(
    ("low", "high", "step", "last"), [(0.0, 1.0, 0.3, 0.9), (0.0, 0.3, 0.1, 0.3), (-1.0, 0.0, 0.25, 0.0), (0.5, 0.6, 1.0, 0.5)]
)
def test_a_float_grid_ends_on_its_last_point(recwarn: pytest.WarningsRecorder, low: float, high: float, step: float, last: float) -> None:
    found = optuna_space({"a": FloatRange(type="float", low=low, high=high, step=step)})["a"]
    assert isinstance(found, FloatDistribution)
    assert found.high == pytest.approx(last)
    assert not recwarn.list


def test_params_reach_their_fields_and_nothing_else() -> None:
    run = small_study().run
    changed = with_params(run, {"freeze.threshold": -0.25, "train.optimizer.lr": 0.5, "freeze.policy": "none"})
    assert (changed.freeze.threshold, changed.train.optimizer.lr, changed.freeze.policy) == (-0.25, 0.5, "none")
    back = with_params(
        changed,
        {"freeze.threshold": run.freeze.threshold, "train.optimizer.lr": run.train.optimizer.lr, "freeze.policy": run.freeze.policy},
    )
    assert back == run
    assert with_params(run, {}) == run


def test_params_that_do_not_go_together_are_refused() -> None:
    run = small_study(train={"workers": 2}).run
    with pytest.raises(SpecError, match="global_batch = 3 must be divisible by workers = 2"):
        with_params(run, {"train.global_batch": 3})


def test_a_searched_preset_brings_its_fields_but_not_over_what_the_study_sets() -> None:
    base = RunSpec.model_validate({"freeze": {"floor": 0.2}, "fisher": {"every": 3}})
    released = with_params(base, {"preset": "released", "freeze.threshold": -0.7})
    expected = {"preset": "released", "freeze": {"floor": 0.2, "threshold": -0.7}, "fisher": {"every": 3}}
    assert released == RunSpec.model_validate(expected)
    assert with_params(base, {"preset": "corrected"}) == base


def test_a_searched_preset_keeps_the_options_of_ones_own_policy() -> None:
    base = RunSpec.model_validate({"freeze": {"policy": "mine:policy", "options": {"a": 1, "b": {"c": 2}}}})
    released = with_params(base, {"preset": "released", "freeze.options.b.c": 3})
    assert released.freeze.options == {"a": 1, "b": {"c": 3}}
    assert released.freeze.floor == 0.0
