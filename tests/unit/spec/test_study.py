from typing import Any

from fat_ray.spec.study import StudySpec, as_json, num_search_trials, num_trials, shown_objective


def study(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "small",
        "search": {"freeze.threshold": {"type": "float", "low": -1.0, "high": 0.0}},
        "budget": {"trials": 3},
    }
    return as_json(StudySpec.model_validate(base | changes))


def test_trials_are_counted_with_baselines() -> None:
    assert num_trials(study()) == 5
    assert num_trials(study(baselines=[])) == 3


def test_with_nothing_to_search_one_trial_is_planned() -> None:
    assert num_search_trials(study(search={})) == 1
    assert num_trials(study(search={}, baselines=["none"])) == 2


def test_the_first_objective_on_the_validation_split_is_shown() -> None:
    objectives = [{"metric": name, "direction": "minimize"} for name in ("mean_active", "val/loss", "val/iou")]
    shown = shown_objective(study(objectives=objectives))
    assert (shown.metric, shown.direction) == ("val/loss", "minimize")


def test_without_an_objective_on_the_validation_split_the_metric_of_the_scheduler_is_shown() -> None:
    costs = [{"metric": "mean_active", "direction": "minimize"}]
    shown = shown_objective(study(objectives=costs, scheduler={"metric": "val/loss", "direction": "minimize"}))
    assert (shown.metric, shown.direction) == ("val/loss", "minimize")
    assert shown_objective(study(objectives=costs)).metric == "val/f1"
