"""Recordings of runs that were never trained."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fat_ray.events import GroupInfo
from fat_ray.replay.recording import Costs, Recording
from fat_ray.rules import Bools, Floats
from fat_ray.spec.run import RunSpec, merge


def recording_of(
    distance: Floats,
    *,
    steps: int,
    window: int = 1,
    elements: list[int] | None = None,
    active: Bools | None = None,
    dead: Bools | None = None,
    costs: Costs | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Recording:
    """A run of which these distances, (updates, groups), were recorded; NaN is what was not measured. A group is a layer of its own."""
    sizes = elements or [10] * distance.shape[1]
    base = {"fisher": {"every": window}, "train": {"steps": steps}, "freeze": {"every": 2, "warmup_steps": 0}}
    return Recording(
        run="none-s0",
        seed=0,
        spec=RunSpec.model_validate(merge(base, spec or {})),
        steps=steps,
        groups=[GroupInfo(f"l{i}", f"l{i}", "Linear", size) for i, size in enumerate(sizes)],
        updates=np.arange(len(distance)) * window,
        distance=distance,
        active=np.ones(distance.shape, np.bool_) if active is None else active,
        dead=np.zeros(len(sizes), np.bool_) if dead is None else dead,
        costs=costs,
    )
