"""What a search says of its settings and its front, by Optuna: importance for each objective, and the volume that a front dominates."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume  # Optuna has no public name for it; constraints.txt pins the version
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from fat_ray.spec.space import Distribution
from fat_ray.study.space import optuna_space

ENOUGH_TRIALS = 20
"""With fewer, importance is noise."""
_BEST, _NUM_BEST = 0.1, 5  # PED-ANOVA looks at the best tenth, and wants five trials in it


def best_share(num_trials: int) -> float:
    """The share of the best trials that importance asks about: a tenth, or as many as five trials are."""
    return max(_BEST, _NUM_BEST / num_trials)


def importances(search: Mapping[str, Distribution], trials: Sequence[tuple[Mapping[str, Any], float]], direction: str) -> dict[str, float]:
    """How much each setting decides whether a trial is among the best in one objective, by PED-ANOVA (Watanabe et al. 2023).

    Args:
        search: The search space.
        trials: Of each completed trial, its parameters and the objective's value.
        direction: ``maximize`` or ``minimize``.

    Returns:
        Shares that sum to 1, the largest first; none with fewer than `ENOUGH_TRIALS` trials.
    """
    if len(trials) < ENOUGH_TRIALS or not search:
        return {}
    space, sign = optuna_space(search), -1.0 if direction == "maximize" else 1.0
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    for params, value in trials:
        known = {key: given for key, given in params.items() if key in space and space[key]._contains(space[key].to_internal_repr(given))}  # noqa: SLF001
        study.add_trial(create_trial(params=known, distributions={key: space[key] for key in known}, value=sign * value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that smaller is better, which is so here
        evaluator = PedAnovaImportanceEvaluator(target_quantile=best_share(len(trials)))
        return get_param_importances(study, evaluator=evaluator)


def dominated_share(
    values: Sequence[Sequence[float]], directions: Sequence[str], ideal: Sequence[float], reference: Sequence[float]
) -> float:
    """The hypervolume that points dominate, as a share of the box between two corners.

    Args:
        values: Objectives of each point; none of them beyond `ideal`, those worse than `reference` count for nothing.
        directions: ``maximize`` or ``minimize`` per objective.
        ideal: The best value of each objective.
        reference: The corner that is worse in every objective.
    """
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    low, high = np.array(ideal) * signs, np.array(reference) * signs
    scaled = (np.array(values, dtype=float).reshape(-1, len(signs)) * signs - low) / (high - low)
    inside = scaled[(scaled <= 1.0).all(axis=1)]
    return float(compute_hypervolume(inside, np.ones(len(signs)))) if len(inside) else 0.0
