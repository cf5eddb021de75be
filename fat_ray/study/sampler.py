"""Samplers by name, built anew for each trial.

What one suggests depends on the seed, the trial's number and the journal, and on nothing that a process remembers, so that a study that is
continued suggests what the uninterrupted one would have.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIIISampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from fat_ray.spec.space import grid, lookup
from fat_ray.spec.study import StudySpec, as_json
from fat_ray.study.space import optuna_space


def build_sampler(spec: StudySpec, number: int, tried: Iterable[Mapping[str, Any]]) -> BaseSampler | None:
    """The sampler of one trial; None when a grid has no setting left.

    Args:
        spec: The study.
        number: The trial's number, which together with the study's seed makes the sampler's.
        tried: Settings of the trials before it.
    """
    seed = int(np.random.SeedSequence([spec.sampler.seed, number]).generate_state(1)[0])
    if spec.sampler.name == "grid":
        setting = _next_setting(spec, tried)
        return None if setting is None else _Fixed(setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _WholeSpaceQMC(spec) if spec.sampler.name == "qmc" else _seeded(spec, seed)


def _seeded(spec: StudySpec, seed: int) -> BaseSampler:
    sampler = spec.sampler
    match sampler.name:
        case "tpe":
            return TPESampler(n_startup_trials=sampler.startup_trials, multivariate=True, group=True, seed=seed)
        case "gp":
            return GPSampler(n_startup_trials=sampler.startup_trials, warn_independent_sampling=False, seed=seed)
        case "nsga2":
            return NSGAIISampler(population_size=_population(spec), seed=seed)
        case "nsga3":
            return NSGAIIISampler(population_size=_population(spec), seed=seed)
        case "cmaes":
            return CmaEsSampler(popsize=sampler.population, warn_independent_sampling=False, seed=seed)
        case _:
            return RandomSampler(seed=seed)


def num_random(spec: StudySpec) -> int:
    """Trials that the sampler draws at random before it learns from them, of those that do."""
    return _population(spec) if spec.sampler.name in ("nsga2", "nsga3") else spec.sampler.startup_trials


def _population(spec: StudySpec) -> int:
    """Optuna's 50, but few enough that a small budget holds more than the random first generation."""
    return spec.sampler.population or min(50, max(4, spec.budget.trials // 4))


class _WholeSpaceQMC(QMCSampler):
    """One scrambled Sobol' sequence over all parameters, conditional ones included.

    Optuna's takes its space from the first trial, and so would draw at random what that trial did not have. The position in the sequence is
    kept in the journal.
    """

    def __init__(self, spec: StudySpec) -> None:
        super().__init__(scramble=True, seed=spec.sampler.seed, warn_independent_sampling=False)
        self._space = {key: given for key, given in optuna_space(spec.search).items() if not given.single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self._space


class _Fixed(BaseSampler):
    """Suggests one setting. Optuna's grid has no conditions, and ends studies that it does not drive."""

    def __init__(self, setting: Mapping[str, Any]) -> None:
        self._setting = setting

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return {}

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002
    ) -> Any:
        return self._setting[param_name]


def _next_setting(spec: StudySpec, tried: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first setting of the shuffled grid that no trial has had."""
    data = as_json(spec)
    settings = grid(spec.search, lambda key: lookup(data, key))
    gone = {_identity(setting) for setting in tried}
    order = np.random.default_rng(spec.sampler.seed).permutation(len(settings))
    return next((settings[position] for position in order if _identity(settings[position]) not in gone), None)


def _identity(setting: Mapping[str, Any]) -> str:
    return json.dumps(setting, sort_keys=True)
