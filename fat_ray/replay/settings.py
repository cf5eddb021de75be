"""Which settings can be replayed, and many of them as arrays."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fat_ray import rules
from fat_ray.errors import InputError
from fat_ray.rules import Ints
from fat_ray.spec.base import nearest
from fat_ray.spec.keys import run_fields, value_adapter
from fat_ray.spec.path import shorten
from fat_ray.spec.run import REPLAYED, RunSpec
from fat_ray.spec.space import lookup
from fat_ray.spec.study import as_json
from fat_ray.spec.wording import message

WINDOW = "fisher.every"
"""The replayed field whose replay is an approximation, see `simulate.coarser`."""


@dataclass(frozen=True)
class Settings:
    """Settings of Fisher drift, as many as there are rows.

    Attributes:
        columns: Each of `REPLAYED` to its value in each setting, shape (settings,).
    """

    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.columns[WINDOW])

    def __getitem__(self, key: str) -> NDArray[Any]:
        return self.columns[key]

    def take(self, rows: Ints) -> "Settings":
        """Some of them."""
        return Settings({key: column[rows] for key, column in self.columns.items()})

    @property
    def rule(self) -> rules.DriftRule:
        """How they decide."""
        return rules.DriftRule(*(self[f"freeze.{name}"] for name in ("threshold", "floor", "cap", "confidence")))


def settings_of(spec: RunSpec, changes: Sequence[Mapping[str, Any]]) -> Settings:
    """Settings that differ from a run's by the given values.

    Args:
        spec: The run.
        changes: Per setting, fields of `REPLAYED` and their values.

    Raises:
        InputError: A field cannot be replayed, a value is none that it can have, or a window is not a multiple of the run's.
    """
    run = as_json(spec)
    base = {key: lookup(run, key) for key in REPLAYED}
    for key in dict.fromkeys(key for change in changes for key in change):
        if key not in REPLAYED:
            near = None if key in run_fields(None) else nearest(key, REPLAYED)
            hint = f"did you mean {near}?" if near else f"it can change {', '.join(REPLAYED)}"
            raise InputError(f"{key}: a replay cannot know what this would change in the drift that was recorded; {hint}")
        _check(key, {json.dumps(change[key]): change[key] for change in changes if key in change}, spec.fisher.every)
    return Settings({key: np.array([change.get(key, base[key]) for change in changes]) for key in REPLAYED})


def _check(key: str, given: Mapping[str, Any], window: int) -> None:
    """Refuses values, each beside its JSON, that the field cannot have."""
    adapter = value_adapter(run_fields(None)[key])
    for text, value in given.items():
        try:
            adapter.validate_json(text)
        except ValidationError as error:
            wrong = message(error.errors(include_url=False)[0], tuple(key.split(".")), None)
            raise InputError(f"{key} = {shorten(value)}: {wrong}") from None
        if key == WINDOW and value % window:
            raise InputError(f"{WINDOW} = {value}: must be a multiple of {window}, the window in which the run recorded its drift")


def differing(spec: RunSpec, other: RunSpec) -> dict[str, Any]:
    """Fields of two runs that differ and could matter to a replay of the first as the second, with the values of the second.

    What only other policies than Fisher drift look at, and what is recorded and kept, are left out.
    """
    before, after = _leaves(as_json(spec)), _leaves(as_json(other))
    return {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key) and not _is_idle(key)}


def _is_idle(key: str) -> bool:
    idle = ("preset", "fisher.record", "train.retries")
    return key in idle or key.startswith("train.checkpoint.") or (key.startswith("freeze.") and key not in REPLAYED)


def _leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def unknown_fields(keys: Iterable[str]) -> list[str]:
    """Those that no replay can change, in order."""
    return sorted(set(keys) - set(REPLAYED))
