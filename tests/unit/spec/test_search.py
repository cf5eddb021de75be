"""What a search must satisfy as a whole, and what a baseline may set: each mistake is one error with its line."""

from pathlib import Path

import pytest

from fat_ray.errors import Problem, SpecError
from fat_ray.spec.baseline import BaselineSpec
from fat_ray.spec.load import load_study
from fat_ray.spec.study import StudySpec

POLICY = "  freeze.policy: {type: categorical, choices: [none, fisher_drift]}\n"
FLOAT = "{type: float, low: 0.0, high: 0.5"


def study(directory: Path, text: str) -> StudySpec:
    path = directory / "study.yaml"
    path.write_text(f"name: a\n{text}\n")
    return load_study(path).spec


def problems(directory: Path, text: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        study(directory, text)
    return caught.value.problems


@pytest.mark.parametrize(
    "text",
    [
        POLICY + f"  freeze.threshold: {FLOAT}, when: freeze.policy == fisher_drift}}",
        POLICY + f"  freeze.threshold: {FLOAT}, when: 'freeze.policy in [fisher_drift]'}}",
        POLICY + f"  freeze.threshold: {FLOAT}, when: freeze.policy != none}}",
        f"  freeze.threshold: {FLOAT}, when: freeze.policy == fisher_drift}}",
        "  fisher.every: {type: int, low: 2, high: 8, step: 2}\n" + f"  freeze.threshold: {FLOAT}, when: fisher.every == 4}}",
        # a value that goes together with the base run only where its condition holds
        (
            "  drift.compare: {type: categorical, choices: [previous]}\n"
            "  drift.noise: {type: categorical, choices: [none]}\n"
            "  drift.distance: {type: categorical, choices: [log]}"
        ),
        (
            "  drift.centre: {type: categorical, choices: [none, median]}\n"
            "  drift.distance: {type: categorical, choices: [log, raw], when: drift.centre == none}"
        ),
    ],
)
def test_conditions_that_can_hold_are_accepted(tmp_path: Path, text: str) -> None:
    assert study(tmp_path, "search:\n" + text).search


@pytest.mark.parametrize(
    ("search", "field", "value", "message"),
    [
        (
            f"  freeze.threshold: {FLOAT}, when: freeze.policy = none}}",
            "freeze.threshold.when",
            "freeze.policy = none",
            "must be field == value",
        ),
        (
            f"  freeze.threshold: {FLOAT}, when: freeze.polcy == none}}",
            "freeze.threshold.when",
            "freeze.polcy == none",
            "did you mean freeze.policy?",
        ),
        (
            f"  freeze.threshold: {FLOAT}, when: freeze.policy == fisher}}",
            "freeze.threshold.when",
            "freeze.policy == fisher",
            "freeze.policy must be",
        ),
        (
            f"{POLICY}  freeze.threshold: {FLOAT}, when: freeze.policy == random_matched}}",
            "freeze.threshold.when",
            "freeze.policy == random_matched",
            "random_matched is not among the values that freeze.policy takes in the search",
        ),
        (
            "  fisher.every: {type: int, low: 2, high: 8, step: 2}\n" + f"  freeze.threshold: {FLOAT}, when: fisher.every == 3}}",
            "freeze.threshold.when",
            "fisher.every == 3",
            "3 is not among the values",
        ),
        (
            f"  freeze.floor: {FLOAT}}}\n  freeze.threshold: {FLOAT}, when: freeze.floor == 0.5}}",
            "freeze.threshold.when",
            "freeze.floor == 0.5",
            "freeze.floor takes any real number between two",
        ),
        (
            (
                f"  freeze.floor: {FLOAT}, step: 0.25, when: fisher.every == 4}}\n"
                "  fisher.every: {type: categorical, choices: [4, 8], when: freeze.floor == 0.5}"
            ),
            "freeze.floor.when",
            "fisher.every == 4",
            "conditions go round in a circle: freeze.floor -> fisher.every -> freeze.floor",
        ),
        (
            f"  preset: {{type: categorical, choices: [paper]}}\n  freeze.threshold: {FLOAT}, when: drift.noise == none}}",
            "freeze.threshold.when",
            "drift.noise == none",
            "drift.noise may change with preset",
        ),
        (f"  freeze.threshold: {FLOAT}, when: freeze.policy == none}}", "", None, "no parameter can ever be suggested"),
    ],
)
def test_a_condition_that_cannot_hold_is_named(tmp_path: Path, search: str, field: str, value: str | None, message: str) -> None:
    [found] = problems(tmp_path, "search:\n" + search)
    assert (found.field, found.value) == (f"search.{field}".rstrip("."), value)
    assert message in found.message
    assert found.line is not None


def test_a_conditional_value_that_never_goes_together_is_named(tmp_path: Path) -> None:
    search = """search:
  drift.centre: {type: categorical, choices: [none, median]}
  drift.distance: {type: categorical, choices: [log, raw], when: drift.centre == median}"""
    [found] = problems(tmp_path, search)
    assert (found.field, found.value) == ("search.drift.distance.choices[1]", "raw")


ONE = "objectives: [{metric: val/f1, direction: maximize}]\n"
TWO_NUMBERS = f"  freeze.threshold: {FLOAT}}}\n  freeze.floor: {FLOAT}}}\n"


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (f"sampler: {{name: grid}}\nsearch:\n  freeze.threshold: {FLOAT}}}", "search.freeze.threshold", "needs a step"),
        (
            f"sampler: {{name: grid}}\nsearch:\n  freeze.threshold: {FLOAT}, step: 0.001}}\n  freeze.floor: {FLOAT}, step: 0.01}}",
            "sampler.name",
            "the grid has 25551 settings",
        ),
        (f"sampler: {{name: cmaes}}\nsearch:\n{TWO_NUMBERS}", "sampler.name", "cmaes improves one objective, not 2"),
        (f"{ONE}sampler: {{name: cmaes}}\nsearch:\n  freeze.threshold: {FLOAT}}}", "sampler.name", "needs at least two parameters"),
        (
            f"{ONE}sampler: {{name: cmaes}}\nsearch:\n{TWO_NUMBERS}  drift.bins: {{type: categorical, choices: [16, 64]}}",
            "search.drift.bins",
            "searches numbers only",
        ),
        (
            f"{ONE}sampler: {{name: cmaes}}\nsearch:\n{TWO_NUMBERS}  freeze.cap: {{type: float, low: 0.1, high: 1, when: drift.bins==64}}",
            "search.freeze.cap.when",
            "cannot search under conditions",
        ),
        (f"sampler: {{name: nsga3, population: 10}}\nsearch:\n{TWO_NUMBERS}", "sampler.population", "must be less than budget.trials = 10"),
    ],
)
def test_what_a_sampler_cannot_do_is_said_before_anything_starts(tmp_path: Path, text: str, field: str, message: str) -> None:
    [found] = problems(tmp_path, text)
    assert found.field == field
    assert message in found.message


def test_baselines_are_policies_or_sections(tmp_path: Path) -> None:
    spec = study(
        tmp_path,
        "baselines: [none, {name: half, set: {freeze.floor: 0.5}}, {name: rm, policy: random_matched, set: {freeze.follow: t0001-s0}}]",
    )
    none, half, control = spec.references
    assert none == BaselineSpec(name="none", policy="none")
    assert (half.changes, half.is_matched) == ({"freeze.floor": 0.5}, False)
    assert (control.changes, control.is_matched) == ({"freeze.policy": "random_matched", "freeze.follow": "t0001-s0"}, True)


def test_any_policy_can_be_a_baseline(tmp_path: Path) -> None:
    written = """baselines:
  - head_only
  - {name: half, set: {freeze.policy: linear_schedule, freeze.final_active: 0.5}}
  - {name: mine, policy: 'my.policies:build'}"""
    assert [(baseline.name, baseline.changes) for baseline in study(tmp_path, written).references] == [
        ("head_only", {"freeze.policy": "head_only"}),
        ("half", {"freeze.policy": "linear_schedule", "freeze.final_active": 0.5}),
        ("mine", {"freeze.policy": "my.policies:build"}),
    ]


@pytest.mark.parametrize(
    ("baseline", "field", "message"),
    [
        ("nothing", "baselines[0]", "freeze.policy must be"),
        ("3", "baselines[0]", "must be a policy, or a section with name, policy and set"),
        ("'my.policies:build'", "baselines[0]", "needs a section with name and policy"),
        ("{name: half, polcy: none}", "baselines[0].polcy", "did you mean policy?"),
        ("{name: half}", "baselines[0]", "would repeat the base run"),
        ("{name: t0001, policy: none}", "baselines[0]", "is that of a searched trial"),
        ("{name: none, policy: fisher_drift}", "baselines[0]", "is the name of another policy than fisher_drift"),
        ("{name: lora, set: {freeze.floor: 0.5}}", "baselines[0]", "is the name of another policy than fisher_drift"),
        ("{name: half, policy: none, set: {freeze.policy: none}}", "baselines[0]", "gives its policy twice"),
        ("{name: half, set: {freeze.flor: 0.5}}", "baselines[0].set.freeze.flor", "did you mean freeze.floor?"),
        ("{name: half, set: {freeze.floor: 1.5}}", "baselines[0]", "freeze.floor must be at most 1"),
        ("{name: long, set: {train.steps: 500}}", "baselines[0].set.train.steps", "the budget at which runs are compared"),
        ("{name: other, set: {task.data: x.parquet}}", "baselines[0].set.task.data", "all runs of a study share their data"),
    ],
)
def test_a_mistake_in_a_baseline_is_named(tmp_path: Path, baseline: str, field: str, message: str) -> None:
    [found] = problems(tmp_path, f"baselines:\n  - {baseline}")
    assert (found.field, found.line) == (field, 3)
    assert message in found.message


def test_two_baselines_of_one_name_are_refused(tmp_path: Path) -> None:
    [found] = problems(tmp_path, "baselines: [none, {name: none, policy: none}]")
    assert "baselines lists none more than once" in found.message


OBSERVED = "{name: observed, policy: none, set: {fisher.record: always, fisher.every: 2}}"


def warm(rest: str, baselines: str = OBSERVED, searched: str = f"  freeze.threshold: {FLOAT}}}\n") -> str:
    return f"search:\n  warm_start: replay\n{searched}baselines: [{baselines}]\n{rest}"


def test_a_warm_start_stands_among_what_is_searched_and_is_no_field(tmp_path: Path) -> None:
    spec = study(tmp_path, warm(""))
    assert (spec.warm_start, list(spec.search)) == ("replay", ["freeze.threshold"])
    again = StudySpec.model_validate_json(spec.model_dump_json())
    assert (again.warm_start, again.search) == (spec.warm_start, spec.search)
    assert study(tmp_path, f"search: {{freeze.threshold: {FLOAT}}}}}").warm_start == "none"
    schema = StudySpec.model_json_schema()["properties"]["search"]
    assert schema["properties"]["warm_start"]["enum"] == ["none", "replay"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (warm("", baselines="none"), "needs a baseline that records drift and freezes nothing, such as {name: observed, policy: none, "),
        (warm("", baselines="{name: x, policy: none, set: {fisher.record: always, train.optimizer.lr: 1.0}}"), "needs a baseline that"),
        (warm("sampler: {name: qmc}"), "is for tpe, gp, nsga2, nsga3, whose first trials are drawn at random, not for sampler qmc"),
        (warm("", searched="  train.optimizer.lr: {type: float, low: 0.1, high: 0.2}\n"), "needs one of freeze.threshold, freeze.every, "),
        (
            warm("", searched="  fisher.every: {type: int, low: 2, high: 4}\n"),
            "needs values of fisher.every that are multiples of 2, the window of baseline observed",
        ),
        (
            warm("", searched=f"  freeze.threshold: {FLOAT}}}\n  preset: {{type: categorical, choices: [corrected, paper]}}\n"),
            "cannot foretell presets",
        ),
    ],
)
def test_a_warm_start_that_cannot_be_is_one_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    [problem] = problems(tmp_path, text)
    assert (problem.field, problem.value, problem.line) == ("search.warm_start", "replay", 3)
    assert message in problem.message


def test_what_a_warm_start_may_be_is_said(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, "search: {warm_start: repley}")
    assert str(problem) == "line 2: search.warm_start = repley: must be none or replay; did you mean replay?"


def test_whether_drift_is_recorded_is_for_baselines_not_for_a_search(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, "search: {fisher.record: {type: categorical, choices: [always, policy]}}")
    assert "cannot be searched: it decides what is recorded, not what is learnt" in problem.message
    assert study(tmp_path, f"baselines: [{OBSERVED}]").references[0].changes["fisher.record"] == "always"
