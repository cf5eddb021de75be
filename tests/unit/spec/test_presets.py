"""Presets are values for fields: what the author writes wins, and what has no meaning together is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from fat_ray.spec.run import PRESETS, RunSpec


def test_the_default_is_corrected() -> None:
    assert RunSpec() == RunSpec.model_validate({"preset": "corrected"})
    assert RunSpec().drift.noise == "swap"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_json(preset: str) -> None:
    spec = RunSpec.model_validate({"preset": preset})
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_field_beside_a_preset_wins() -> None:
    spec = RunSpec.model_validate({"preset": "released", "fisher": {"groups": {"blocks": 5}}, "freeze": {"threshold": 0.25}})
    assert (spec.fisher.groups.blocks, spec.freeze.threshold) == (5, 0.25)
    assert (spec.fisher.groups.split_qkv, spec.fisher.average, spec.freeze.floor) == (True, "reset", 0.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"drift": {"compare": "average"}}, "needs drift.compare = previous"),
        ({"fisher": {"formulas": "released"}}, "needs fisher.formulas = exact"),
        ({"train": {"global_batch": 1}}, "train.global_batch >= 2, not 1"),
        ({"drift": {"distance": "raw"}}, "needs drift.centre = none"),
    ],
)
def test_what_has_no_meaning_together_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RunSpec.model_validate(given)
