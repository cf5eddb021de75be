"""Study files: what is right is read, and every kind of mistake is named with line, field, value and what would be right."""

import json
from pathlib import Path
from typing import Protocol

import pytest

from fat_ray.errors import Problem, SpecError
from fat_ray.spec.load import LoadedStudy, load_study, study_schema
from fat_ray.spec.space import Choice, FloatRange
from fat_ray.spec.task import CrackSegmentationSpec

GOOD = """\
name: my-study
train:
  steps: 40
freeze:
  threshold: -0.5
search:
  freeze.threshold: {type: float, low: -1, high: 0}
"""


class Load(Protocol):
    def __call__(self, text: str | bytes, *overrides: str) -> LoadedStudy: ...


class Problems(Protocol):
    def __call__(self, text: str | bytes, *overrides: str) -> list[Problem]: ...


class TheProblem(Protocol):
    def __call__(self, text: str | bytes, *overrides: str) -> Problem: ...


LAUGHS = "a: &b0 [1, 2, 3, 4, 5]\n" + "".join(f"c{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 9))
QUICKSTART = Path(__file__).parents[3] / "studies" / "quickstart.yaml"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str | bytes, *overrides: str) -> LoadedStudy:
        path = tmp_path / "study.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_study(path, overrides)

    return load


@pytest.fixture
def problems(load: Load) -> Problems:
    def problems(text: str | bytes, *overrides: str) -> list[Problem]:
        with pytest.raises(SpecError) as caught:
            load(text, *overrides)
        return caught.value.problems

    return problems


@pytest.fixture
def problem(problems: Problems) -> TheProblem:
    def problem(text: str | bytes, *overrides: str) -> Problem:
        found = problems(text, *overrides)
        assert len(found) == 1, found
        return found[0]

    return problem


def test_a_good_file_keeps_its_text_and_gives_defaults(load: Load) -> None:
    loaded = load(GOOD)
    assert loaded.text == GOOD
    assert loaded.spec.name == "my-study"
    assert loaded.spec.train.steps == 40
    assert loaded.spec.freeze.every == 12
    assert loaded.spec.search["freeze.threshold"] == FloatRange(type="float", low=-1, high=0)


def test_the_quickstart_is_right_and_searches_what_it_promises() -> None:
    spec = load_study(QUICKSTART).spec
    assert spec.name == "quickstart"
    assert {"freeze.threshold", "fisher.every", "freeze.every"} <= set(spec.search)
    assert spec.budget.trials >= 6
    assert spec.train.workers == 2
    assert spec.baselines == ["none", "random_matched"]
    assert [objective.metric for objective in spec.objectives] == ["val/f1", "mean_active"]


@pytest.mark.parametrize(
    ("text", "line", "field", "value", "message"),
    [
        ("name: a\nfreze: {}", 2, "freze", None, "unknown key; did you mean freeze?"),
        ("name: a\nfreeze:\n  treshold: 0.1", 3, "freeze.treshold", "0.1", "unknown key; did you mean threshold?"),
        ("name: a\nthreshold: 0.1", 2, "threshold", "0.1", "unknown key here; did you mean freeze.threshold?"),
        ("name: a\nfreeze.floor: 0.1", 2, "freeze.floor", "0.1", "unknown key; write floor inside the section freeze"),
        ("name: a\nfreeze:\n  threshold: abc", 3, "freeze.threshold", "abc", "must be a number, not the text 'abc'"),
        ("name: a\nfreeze:\n  threshold: .nan", 3, "freeze.threshold", "nan", "must be a finite number, not NaN"),
        ("name: a\ntrain:\n  steps: 2.5", 3, "train.steps", "2.5", "must be a whole number, not 2.5"),
        ("name: a\ntrain:\n  steps: 0", 3, "train.steps", "0", "must be at least 1"),
        ("name: a\ntask:\n  name: crack_segmentation\n  augment: yes", 4, "task.augment", "yes", "must be true or false, not the text"),
        ("name: a\ntask:\n  name: cracks", 3, "task.name", "cracks", "unknown task: give name: crack_segmentation"),
        ("name: a\ntask:\n  name: crack_segmentation\n  image_sizes: 64", 4, "task.image_sizes", "64", "did you mean image_size?"),
        ("name: a\ntask:\n  name: crack_segmentation\n  image_size: 33", 4, "task.image_size", "33", "must be a multiple of 32"),
        ("name: a\nfreeze: {policy: fisher}", 2, "freeze.policy", "fisher", "or module:function of your own; did you mean fisher_drift?"),
        ("name: a\nsampler: {name: tp}", 2, "sampler.name", "tp", "qmc, random or grid; did you mean tpe?"),
        ("name: a\nscheduler: {name: bohb}", 2, "scheduler.name", "bohb", "must be asha, hyperband, median, patience or none"),
        ("name: My Study", 1, "name", "My Study", "lower-case"),
        ("name: 3", 1, "name", "3", "must be a text, not 3"),
        ("train: {steps: 3}", 1, "name", None, "is missing"),
        ("name: a\nwandb:", 2, "wandb", "null", "remove the line or give its keys"),
        ("name: a\nseeds: 3", 2, "seeds", "3", "must be a list, not 3"),
        ("name: a\nseeds: [1, x]", 2, "seeds[1]", "x", "must be a whole number"),
        ("name: a\ntrain: {workers: 3, global_batch: 4}", 2, "train", None, "global_batch = 4 must be divisible by workers = 3"),
        ("name: a\nfreeze: {floor: 1.5}", 2, "freeze.floor", "1.5", "must be at most 1"),
        ("name: a\nfreeze: {policy: random_matched}", 2, "freeze.policy", "random_matched", "list it under baselines"),
        ("name: a\nscheduler: {name: asha, grace_steps: 500}", 2, "scheduler.grace_steps", "500", "at most train.steps = 100"),
        ("name: a\nname: b", 2, "name", None, "is given twice; first on line 1"),
        ("name: a\nfreeze:\n  floor: !!python/object:os.system x", 3, "freeze.floor", "x", "tags are not supported"),
    ],
)  # fmt: skip
def test_one_mistake_is_named_with_its_line(problems: Problems, text: str, line: int, field: str, value: str | None, message: str) -> None:
    found = problems(text)
    assert (found[0].line, found[0].field, found[0].value) == (line, field, value)
    assert message in found[0].message


@pytest.mark.parametrize(
    ("search", "field", "value", "message"),
    [
        ("freeze.treshold: {type: float, low: 0, high: 1}", "search.freeze.treshold", None, "did you mean freeze.threshold?"),
        ("threshold: {type: float, low: 0, high: 1}", "search.threshold", None, "did you mean freeze.threshold?"),
        ("xyzzy: {type: float, low: 0, high: 1}", "search.xyzzy", None, "give the dotted key of a field"),
        ("freeze.threshold: {type: float, low: 1, high: 0}", "search.freeze.threshold", None, "low = 1.0 is greater than high = 0.0"),
        ("freeze.every: {type: int, low: 9, high: 4}", "search.freeze.every", None, "low = 9 is greater than high = 4"),
        ("freeze.threshold: {type: float, low: x, high: 0}", "search.freeze.threshold.low", "x", "must be a number, not the text 'x'"),
        ("freeze.threshold: {type: float, low: .nan, high: 0}", "search.freeze.threshold.low", "nan", "must be a finite number"),
        ("freeze.threshold: {type: float, low: 0}", "search.freeze.threshold.high", None, "is missing"),
        ("freeze.threshold: {type: flot, low: 0, high: 1}", "search.freeze.threshold", None, "needs type: float, int or categorical"),
        ("freeze.threshold: {type: float, low: 0, high: 1, stepp: 1}", "search.freeze.threshold.stepp", "1", "did you mean step?"),
        ("freeze.floor: {type: float, low: 0, high: 2.0}", "search.freeze.floor.high", "2.0", "freeze.floor must be at most 1"),
        ("freeze.every: {type: float, low: 4, high: 8}", "search.freeze.every.low", "4.0", "use type: int"),
        ("freeze.every: {type: categorical, choices: [4, x]}", "search.freeze.every.choices[1]", "x", "must be a whole number"),
        ("freeze.every: {type: categorical, choices: [[4], 8]}", "search.freeze.every.choices[0]", None, "a single value, not a list"),
        ("freeze.every: {type: categorical, choices: [4, 4]}", "search.freeze.every.choices", None, "lists 4 more than once"),
        ("freeze.every: {type: categorical, choices: []}", "search.freeze.every.choices", None, "a list of at least 1"),
        ("train.global_batch: {type: int, low: 2, high: 6}", "search.train.global_batch", "3", "must be divisible by workers = 2"),
        ("train.workers: {type: int, low: 1, high: 2}", "search.train.workers", None, "resources are planned once"),
        ("train.steps: {type: int, low: 1, high: 2}", "search.train.steps", None, "the budget at which runs are compared"),
        ("task.name: {type: categorical, choices: [a]}", "search.task.name", None, "cannot be compared"),
        ("train.optimizer.betas: {type: float, low: 0, high: 0.5}", "search.train.optimizer.betas", None, "not a single number"),
        ("freeze.policy: {type: categorical, choices: [random_matched]}", "search.freeze.policy.choices[0]", "random_matched", "baselines"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_search_is_named(problem: TheProblem, search: str, field: str, value: str | None, message: str) -> None:
    found = problem(f"name: a\ntrain: {{workers: 2}}\nsearch:\n  {search}\n")
    assert (found.line, found.field, found.value) == (4, field, value)
    assert message in found.message


@pytest.mark.parametrize(
    ("metric", "direction", "field", "message"),
    [
        ("val/f2", "maximize", "objectives[0].metric", "did you mean val/f1?"),
        ("val/constant_f1", "maximize", "objectives[0].metric", "must be one of val/f1, val/iou, val/loss"),
        ("test/f1", "maximize", "objectives[0].metric", "must be val/<metric of the task>"),
        ("val/loss", "maximize", "objectives[0].direction", "must be minimize for val/loss"),
        ("val/f1", "max", "objectives[0].direction", "did you mean maximize?"),
    ],
)
def test_objectives_are_known_and_point_the_right_way(problem: TheProblem, metric: str, direction: str, field: str, message: str) -> None:
    found = problem(f"name: a\nobjectives: [{{metric: {metric}, direction: {direction}}}]")
    assert found.field == field
    assert message in found.message


def test_the_scheduler_judges_by_a_known_metric(problem: TheProblem) -> None:
    found = problem("name: a\nscheduler: {name: asha, metric: val/ioo}")
    assert (found.field, found.value) == ("scheduler.metric", "val/ioo")
    assert "did you mean val/iou?" in found.message


def test_all_mistakes_of_a_file_are_reported_at_once_in_the_order_of_lines(problems: Problems) -> None:
    text = """\
name: A
freeze:
  threshold: abc
  polcy: none
  floor: 2
search:
  freeze.evry: {type: int, low: 1, high: 2}
  freeze.floor: {type: float, low: 0, high: 2}
train:
  steps: -1
  steps: 3
task:
  name: nothing
"""
    found = problems(text, "fisher.every=x")
    assert [(problem.line, problem.field) for problem in found] == [
        (1, "name"),
        (3, "freeze.threshold"),
        (4, "freeze.polcy"),
        (5, "freeze.floor"),
        (7, "search.freeze.evry"),
        (8, "search.freeze.floor.high"),
        (10, "train.steps"),
        (11, "train.steps"),
        (13, "task.name"),
        (None, "fisher.every"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; a study file starts with name:"),
        ("- 1\n", "holds no keys"),
        ("name: a\n bad: [", "is not valid YAML"),
        ("name: a\n---\nname: b\n", "is not valid YAML"),
        (b"name: \xff\xfe", "is not UTF-8 text"),
        ("name: a # " + "x" * 300_000, "is larger than 256 KiB"),
        ("a: " + "[" * 5000, "is nested deeper than 32 levels"),
        ("a: " + "[" * 40 + "]" * 40, "is nested deeper than 32 levels"),
        (LAUGHS, "more than 20000 values"),
        ("a: &a [*a]", "is not valid YAML|more than 20000 values or 32 levels"),
    ],
)  # fmt: skip
def test_what_is_no_study_file_at_all_is_refused(problems: Problems, text: str | bytes, message: str) -> None:
    found = problems(text)
    assert found[0].field == ""
    assert any(part in found[0].message for part in message.split("|")), found[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_study(tmp_path / "nothing.yaml")


def test_a_value_cannot_write_to_the_terminal(problem: TheProblem) -> None:
    found = problem('name: a\nfreeze: {threshold: "\\e[31mred"}')
    assert "\x1b" not in str(found)


def test_overrides_replace_add_and_reach_into_the_search(load: Load) -> None:
    spec = load(
        GOOD,
        "train.steps=7",
        "drift.bins=16",
        "seeds=[1, 2]",
        "search.freeze.threshold.low=-3",
        "search.freeze.every={type: int, low: 1, high: 2}",
        "train.clip_norm=null",
    ).spec
    assert (spec.train.steps, spec.drift.bins, spec.seeds, spec.train.clip_norm) == (7, 16, [1, 2], None)
    assert spec.search["freeze.threshold"].low == -3
    assert set(spec.search) == {"freeze.threshold", "freeze.every"}


@pytest.mark.parametrize(
    ("override", "field", "message"),
    [
        ("freeze.treshold=1", "freeze.treshold", "did you mean threshold?"),
        ("freeze.threshold=abc", "freeze.threshold", "must be a number, not the text 'abc'"),
        ("search.freeze.threshold.low=9", "search.freeze.threshold", "low = 9.0 is greater than high = 0.0"),
        ("steps", "--set", "must be field=value"),
        ("=1", "--set", "must be field=value"),
        ("name.x=1", "--set", "name is not a section"),
        ("freeze.threshold=[", "freeze.threshold", "is not valid YAML"),
    ],
)
def test_a_wrong_override_is_named_without_a_line(problem: TheProblem, override: str, field: str, message: str) -> None:
    found = problem(GOOD, override)
    assert found.field == field
    assert message in found.message
    assert found.line is None or field == "search.freeze.threshold"  # high is on that line
    assert "--set" in str(found) or found.field in override


def test_settings_of_ones_own_task_can_be_searched(load: Load, problem: TheProblem) -> None:
    text = "name: a\ntask: {name: 'my.tasks:build', settings: {width: 8, inner: {depth: 2}}}\nsearch:\n"
    spec = load(text + "  task.settings.inner.depth: {type: int, low: 1, high: 3}").spec
    assert list(spec.search) == ["task.settings.inner.depth"]
    found = problem(text + "  task.settings.widht: {type: int, low: 1, high: 3}")
    assert "did you mean task.settings.width?" in found.message


def test_a_policy_of_ones_own_is_named_and_its_options_can_be_searched(load: Load, problem: TheProblem) -> None:
    text = "name: a\nfreeze: {policy: my_package.policies:mine, options: {depth: 2, inner: {rate: 0.5}}}\nsearch:\n"
    spec = load(text + "  freeze.options.inner.rate: {type: float, low: 0.1, high: 0.9}").spec
    assert (spec.freeze.policy, list(spec.search)) == ("my_package.policies:mine", ["freeze.options.inner.rate"])
    found = problem(text + "  freeze.options.dept: {type: int, low: 1, high: 3}")
    assert "did you mean freeze.options.depth?" in found.message


def test_policies_can_be_searched_by_name(load: Load, problem: TheProblem) -> None:
    text = "name: a\nsearch:\n  freeze.policy: {type: categorical, choices: [%s]}"
    names = "none, bitfit, lora, my_package:mine"
    assert load(text % names).spec.search["freeze.policy"] == Choice(type="categorical", choices=names.split(", "))
    found = problem(text % "none, bitfitt")
    assert (found.field, found.value) == ("search.freeze.policy.choices[1]", "bitfitt")
    assert found.message.endswith("or module:function of your own; did you mean bitfit?")
    assert "it is not a single number" in problem("name: a\nsearch:\n  freeze.options: {type: int, low: 1, high: 3}").message


@pytest.mark.parametrize("name", ["my package:f", "my_package:", ":f", "a:b:c", "my-package:f"])
def test_a_policy_that_cannot_be_a_function_is_refused(problem: TheProblem, name: str) -> None:
    found = problem(f"name: a\nfreeze: {{policy: '{name}'}}")
    assert (found.field, found.value) == ("freeze.policy", name)
    assert "must be fisher_drift, none, " in found.message


def test_metrics_of_ones_own_task_are_left_to_it(load: Load) -> None:
    spec = load("name: a\ntask: {name: 'my.tasks:build'}\nobjectives: [{metric: val/perplexity, direction: minimize}]").spec
    assert spec.objectives[0].metric == "val/perplexity"


def test_paths_of_data_are_absolute_from_the_present_directory_on(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = "name: a\ntask: {name: crack_segmentation, data: data/mine.parquet, groups: ~/groups.json}"
    task = load(text).spec.task
    assert isinstance(task, CrackSegmentationSpec)
    assert (task.data, task.groups) == (str(tmp_path / "elsewhere" / "data" / "mine.parquet"), str(Path.home() / "groups.json"))
    assert load(text, "task.data=/there/other.parquet").spec.task == task.model_copy(update={"data": "/there/other.parquet"})
    assert load("name: a").spec.task == CrackSegmentationSpec()


def test_the_schema_is_json_and_names_every_section() -> None:
    schema = json.loads(json.dumps(study_schema()))
    assert {"name", "task", "train", "fisher", "drift", "freeze", "search", "objectives", "budget"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
