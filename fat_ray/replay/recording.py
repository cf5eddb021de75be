"""What a run recorded of its drift and its costs, as arrays: all that a replay looks at."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from fat_ray.errors import InputError, RecordError
from fat_ray.events import GroupInfo, RunStart
from fat_ray.records.reader import read_table, run_start
from fat_ray.rules import Bools, Floats, Ints
from fat_ray.spec.run import RunSpec


@dataclass(frozen=True)
class Costs:
    """What the steps of a run cost, and what of it depends on what is trained.

    Attributes:
        forward: Operations of the forward of each step, shape (steps,).
        input_gradient: Those to the inputs of layers in the first step, when all was trained.
        weight_gradient: Those to the weights, likewise.
        layers: Rows of the table `layers`: path, or None for products without a weight, in the order of first use.
        layer_forward: Operations of their forwards in the first step.
    """

    forward: Floats
    input_gradient: float
    weight_gradient: float
    layers: Sequence[str | None]
    layer_forward: Floats


@dataclass(frozen=True)
class Recording:
    """One run, as far as its records go.

    Attributes:
        run: Its id.
        seed: Its seed.
        spec: Its specification.
        steps: Optimizer steps that it did.
        groups: All groups, in network order.
        updates: Steps of the drift updates, shape (updates,).
        distance: What each update measured of each group, (updates, groups); NaN where it measured nothing.
        active: Whether the group was trained up to the update, likewise.
        dead: Groups whose Fisher is zero by decree, (groups,).
        costs: None where the records do not say, as those older than 1.2.
    """

    run: str
    seed: int
    spec: RunSpec
    steps: int
    groups: Sequence[GroupInfo]
    updates: Ints
    distance: Floats
    active: Bools
    dead: Bools
    costs: Costs | None

    @cached_property
    def elements(self) -> Ints:
        """Parameter entries of each group, shape (groups,)."""
        return np.array([group.elements for group in self.groups], np.int64)

    @property
    def freezes(self) -> bool:
        """Whether the run froze anything that moved while it measured: then nobody knows how that would have moved on."""
        return not bool((self.active | self.dead).all())


def read_recording(directory: str | Path, run: str) -> Recording:
    """Reads what a run recorded.

    Raises:
        InputError: It measured no drift.
        RecordError: There is no such run, or its records cannot be read.
    """
    start = run_start(directory, run)
    spec = spec_of(start)
    drift, steps = read_table(directory, "drift", run), read_table(directory, "steps", run)
    if not drift.num_rows or not steps.num_rows:
        raise InputError(
            f"run {run} recorded no drift (freeze.policy = {spec.freeze.policy}, fisher.record = {spec.fisher.record}): give a run with"
            " fisher.record = always, such as that of fat-ray run STUDY.yaml --set freeze.policy=none --set fisher.record=always"
        )
    shape = (int(drift["update"].to_numpy().max()) + 1, len(start.groups))
    place = (drift["update"].to_numpy(), drift["group"].to_numpy())
    updates, active = np.zeros(shape[0], np.int64), np.zeros(shape, np.bool_)
    updates[place[0]], active[place] = drift["step"].to_numpy(), drift["active"].to_numpy(zero_copy_only=False)
    distance, smoothed = (_filled(shape, place, drift[name]) for name in ("distance", "smoothed"))
    return Recording(
        run=run,
        seed=start.seed,
        spec=spec,
        steps=int(steps["step"].to_numpy().max()) + 1,
        groups=start.groups,
        updates=updates,
        distance=distance,
        active=active,
        dead=_dead(spec, distance, smoothed, active),
        costs=_costs(steps, read_table(directory, "layers", run)),
    )


def frozen_at(directory: str | Path, run: str, groups: int, never: int) -> Ints:
    """The recorded freeze schedule of a run: the step at which each group froze, shape (groups,).

    Args:
        directory: The study's directory.
        run: The run.
        groups: Number of its groups.
        never: What stands for groups that did not freeze.
    """
    found, table = np.full(groups, never, np.int64), read_table(directory, "freezes", run)
    found[table["group"].to_numpy()] = table["step"].to_numpy()
    return found


def spec_of(start: RunStart) -> RunSpec:
    """The specification of a recorded run.

    Raises:
        RecordError: This version of the program knows no such run.
    """
    try:
        return RunSpec.model_validate_json(json.dumps(start.spec))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordError(f"the records of run {start.run} hold no run of this version: {where}: {first['msg']}") from error


def _filled(shape: tuple[int, int], place: tuple[Ints, Ints], column: pa.ChunkedArray) -> Floats:
    """Values by update and group; a row that was written again counts as it came last."""
    values = np.full(shape, np.nan)
    values[place] = column.to_numpy()
    return values


def _dead(spec: RunSpec, distance: Floats, smoothed: Floats, active: Bools) -> Bools:
    """Groups without a Fisher: where the first update counts as a distance of zero it passed them by, else nothing was ever measured."""
    if spec.fisher.uncovered != "zero":
        return np.zeros(distance.shape[1], np.bool_)
    measured = smoothed[:1] if spec.drift.start == "zero" else distance
    dead: Bools = active[0] & np.isnan(measured).all(axis=0)
    return dead


def _costs(steps: pa.Table, layers: pa.Table) -> Costs | None:
    if not layers.num_rows or not steps["flops_forward"][0].as_py():
        return None
    return Costs(
        forward=steps["flops_forward"].to_numpy(),
        input_gradient=steps["flops_input_gradient"][0].as_py(),
        weight_gradient=steps["flops_weight_gradient"][0].as_py(),
        layers=layers["layer"].to_pylist(),
        layer_forward=layers["flops_forward"].to_numpy(),
    )
