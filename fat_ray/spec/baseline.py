"""Baselines: reference runs beside the search, each a policy with settings of its own."""

import re
from typing import Annotated, Self

from pydantic import Discriminator, Tag, model_validator

from fat_ray.spec.base import Name, Strict
from fat_ray.spec.space import Scalar

_SEARCH_TRIAL = re.compile(r"t\d+")


class BaselineSpec(Strict):
    """A reference run: the study's base run under another policy, or with other settings."""

    name: Name
    """Names its runs, such as `half-s0`."""
    policy: str | None = None
    """Value of freeze.policy; null: what `set` or the base run says."""
    set: dict[str, Scalar] = {}
    """Dotted fields of the run and their values. Data, steps and resources are the study's own: baselines are comparable."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if _SEARCH_TRIAL.fullmatch(self.name):
            raise ValueError(f"name {self.name} is that of a searched trial: choose one that is not t and digits")
        if self.policy is None and not self.set:
            raise ValueError(f"baseline {self.name} would repeat the base run: give policy or set")
        if self.policy is not None and "freeze.policy" in self.set:
            raise ValueError(f"baseline {self.name} gives its policy twice: under policy and as freeze.policy under set")
        return self

    @property
    def changes(self) -> dict[str, Scalar]:
        """All dotted fields that differ from the base run's."""
        return {**self.set, **({} if self.policy is None else {"freeze.policy": self.policy})}

    @property
    def shown(self) -> dict[str, Scalar]:
        """Of these what its name does not say already."""
        return {key: value for key, value in self.changes.items() if (key, value) != ("freeze.policy", self.name)}

    @property
    def is_matched(self) -> bool:
        """Whether it follows the schedule of a run, and so comes after the search."""
        return self.changes.get("freeze.policy") == "random_matched"


def _kind(value: object) -> str | None:
    return "policy" if isinstance(value, str) else "settings" if isinstance(value, dict | BaselineSpec) else None


Baseline = Annotated[
    Annotated[Name, Tag("policy")] | Annotated[BaselineSpec, Tag("settings")],
    Discriminator(
        _kind, custom_error_type="unknown_baseline", custom_error_message="must be a policy, or a section with name, policy and set"
    ),
]
"""The name of a policy, or a section."""


def as_section(given: Baseline) -> BaselineSpec:
    """The baseline with its name and changes; the name of a policy alone is both."""
    return given if isinstance(given, BaselineSpec) else BaselineSpec(name=given, policy=given)
