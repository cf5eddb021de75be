from typing import Any

import pytest

from fat_ray.errors import InputError
from fat_ray.replay.settings import differing, settings_of
from fat_ray.spec.run import RunSpec

SPEC = RunSpec.model_validate({"fisher": {"every": 4}, "freeze": {"threshold": -0.25}})


def test_what_is_not_changed_is_the_run_s() -> None:
    settings = settings_of(SPEC, [{}, {"freeze.threshold": -1.0}, {"freeze.every": 3, "fisher.every": 8}])
    assert settings["freeze.threshold"].tolist() == [-0.25, -1.0, -0.25]
    assert settings["freeze.every"].tolist() == [12, 12, 3]
    assert settings["fisher.every"].tolist() == [4, 4, 8]
    assert settings["drift.score"].tolist() == ["mean"] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fisher.decay": 0.5}, r"fisher\.decay: a replay cannot know .* in the drift .*; it can change freeze\.threshold, "),
        ({"freeze.treshold": 0.5}, r"freeze\.treshold: .* did you mean freeze\.threshold\?"),
        ({"freeze.every": 0}, r"freeze\.every = 0: must be at least 1"),
        ({"freeze.every": 2.5}, r"freeze\.every = 2\.5: must be a whole number"),
        ({"drift.score": "median"}, r"drift\.score = median: must be mean, last or total_variation"),
        ({"freeze.cap": 0}, r"freeze\.cap = 0: must be greater than 0"),
        ({"freeze.floor": None}, r"freeze\.floor = null: must be a number, not nothing"),
        ({"fisher.every": 6}, r"fisher\.every = 6: must be a multiple of 4, the window in which the run recorded its drift"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_words(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        settings_of(SPEC, [{}, change])


def test_fields_that_matter_to_a_replay_are_told_apart_from_those_that_do_not() -> None:
    other = RunSpec.model_validate(
        {
            "fisher": {"every": 8, "record": "always", "decay": 0.5},
            "freeze": {"policy": "none", "rank": 2, "threshold": 0.0},
            "train": {"checkpoint": {"keep": 9}, "retries": 3},
        }
    )
    assert differing(SPEC, other) == {"fisher.every": 8, "fisher.decay": 0.5, "freeze.threshold": 0.0}
