"""Where a search begins: settings spread over the range of mean_active that a replay foretells, rather than where chance puts them.

Most of a search space freezes hardly anything, or nearly all at once. A baseline that records drift without freezing tells which settings
lie between, before any of them is trained. What is planned depends on the study and on that baseline's records alone: a driver that goes on
with a study plans the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fat_ray.errors import InputError, RecordError, SpecError
from fat_ray.replay.costs import mean_active
from fat_ray.replay.recording import Recording, read_recording
from fat_ray.replay.settings import settings_of
from fat_ray.replay.simulate import replay
from fat_ray.rules import Floats, spread
from fat_ray.spec.condition import suggest
from fat_ray.spec.run import REPLAYED
from fat_ray.spec.search import observers
from fat_ray.spec.space import Distribution, FloatRange, IntRange, lookup, num_values, values
from fat_ray.spec.study import StudySpec, as_json
from fat_ray.study.sampler import num_random
from fat_ray.study.space import with_params

CANDIDATES = 2048
"""Settings drawn at random, from which the first trials are chosen."""

_STREAM = 2**32 - 1  # the samplers of trials count from 0

Params = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """A setting to begin with.

    Attributes:
        params: Searched fields and their values.
        foretold: The mean active fraction that its replay foretells, over the seeds.
    """

    params: Params
    foretold: float


class WarmStart:
    """The first settings of a search, by number of the trial.

    Args:
        spec: The study.
        directory: Its directory, in which the baseline has recorded its drift by the time that a setting is asked for.
    """

    def __init__(self, spec: StudySpec, directory: Path) -> None:
        self._spec, self._directory = spec, directory
        self.problem = ""

    def setting(self, number: int) -> Start | None:
        """What the trial of this number begins with; None: the sampler decides."""
        if self._spec.warm_start == "none" or number >= num_random(self._spec):
            return None
        return dict(enumerate(self._plan)).get(number)

    @cached_property
    def _plan(self) -> list[Start]:
        recordings = self._recordings()
        if not recordings:
            return []
        candidates = candidate_settings(self._spec)
        total = recordings[0].elements.sum()
        foretold = np.mean([_foretold(self._spec, recording, candidates) for recording in recordings], axis=0) / total
        chosen = spread(foretold, min(num_random(self._spec), self._spec.budget.trials)) if candidates else []
        return [Start(candidates[place], float(foretold[place])) for place in chosen]

    def _recordings(self) -> list[Recording]:
        """What the baseline recorded, of each seed; empty, with the problem noted, if it recorded nothing."""
        found, (observer, *_) = list[Recording](), observers(self._spec)
        for seed in self._spec.seeds:
            try:
                found.append(self._recording(f"{observer.name}-s{seed}"))
            except (InputError, RecordError) as error:
                problem = str(error)
        if not found:
            self.problem = f"search.warm_start = replay has nothing to replay, so the first trials are drawn at random: {problem}"
        return found

    def _recording(self, run: str) -> Recording:
        recording = read_recording(self._directory, run)
        if recording.steps < self._spec.train.steps:
            raise InputError(f"run {run} did only {recording.steps} of {self._spec.train.steps} steps")
        return recording


def candidate_settings(spec: StudySpec) -> list[Params]:
    """Settings drawn evenly from the search space, less those of other policies and those that do not go together."""
    rng, data = np.random.default_rng([spec.sampler.seed, _STREAM]), as_json(spec)
    conditions = {key: given.condition for key, given in spec.search.items()}
    drawn = [suggest(conditions, lambda key: lookup(data, key), lambda key: _draw(spec.search[key], rng)) for _ in range(CANDIDATES)]
    return [params for params in drawn if params.get("freeze.policy", spec.freeze.policy) == "fisher_drift" and _is_possible(spec, params)]


def _is_possible(spec: StudySpec, params: Params) -> bool:
    try:
        with_params(spec.run, params)
    except SpecError:
        return False
    return True


def _draw(given: Distribution, rng: np.random.Generator) -> Any:
    """A value, evenly drawn; of logarithmic ranges evenly in the logarithm."""
    if isinstance(given, FloatRange) and num_values(given) is None:
        return float(np.exp(rng.uniform(*np.log([given.low, given.high]))) if given.log else rng.uniform(given.low, given.high))
    if isinstance(given, IntRange) and given.log:
        drawn = np.exp(rng.uniform(*np.log([given.low - 0.5, given.high + 0.5])))
        return int(np.clip(np.rint(drawn), given.low, given.high))
    if isinstance(given, IntRange):
        return given.low + given.step * int(rng.integers((given.high - given.low) // given.step + 1))
    allowed = values(given)
    return allowed[int(rng.integers(len(allowed)))]


def _foretold(spec: StudySpec, recording: Recording, candidates: Sequence[Mapping[str, Any]]) -> Floats:
    """N̄ of each setting. What no replay can change is as the baseline had it."""
    data = as_json(spec.run)
    base = {key: lookup(data, key) for key in REPLAYED}
    changes = [{**base, **{key: value for key, value in params.items() if key in base}} for params in candidates]
    return mean_active(recording, replay(recording, settings_of(recording.spec, changes)))
