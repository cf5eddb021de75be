"""Searches without runs: an objective that is a formula, to see what samplers suggest."""

from pathlib import Path
from typing import Any

from fat_ray.spec.study import StudySpec
from fat_ray.study.journal import Journal
from tests.support.small_studies import small_study

PLAIN = {
    "freeze.threshold": {"type": "float", "low": -1.0, "high": 0.0, "step": 0.125},
    "freeze.every": {"type": "int", "low": 2, "high": 8},
}
CONDITIONAL = {
    "freeze.threshold": {**PLAIN["freeze.threshold"], "when": "freeze.policy == fisher_drift"},
    "freeze.every": PLAIN["freeze.every"],
    "freeze.policy": {"type": "categorical", "choices": ["none", "fisher_drift"]},
}
OBJECTIVES = (("val/f1", "maximize"), ("mean_active", "minimize"), ("flops", "minimize"))


def searching(sampler: str, *, objectives: int = 2, conditional: bool = True, trials: int = 12, seed: int = 0) -> StudySpec:
    """A study with that sampler; CMA-ES can neither have conditions nor several objectives."""
    if sampler == "cmaes":
        objectives, conditional = 1, False
    return small_study(
        search=CONDITIONAL if conditional else PLAIN,
        objectives=[{"metric": metric, "direction": direction} for metric, direction in OBJECTIVES[:objectives]],
        sampler={
            "name": sampler,
            "seed": seed,
            "startup_trials": 3,
            **({"population": 4} if sampler in ("nsga2", "nsga3", "cmaes") else {}),
        },
        budget={"trials": trials},
        baselines=[],
    )


def search(spec: StudySpec, directory: Path, up_to: int) -> list[dict[str, Any]]:
    """Opens the journal, which may hold trials already, and goes on one at a time; the parameters of all trials. Every fourth is pruned."""
    directory.mkdir(exist_ok=True)
    journal = Journal(spec, directory)
    while len(journal.trials) < up_to and (asked := journal.ask()) is not None:
        number, params = asked
        distance = abs(params.get("freeze.threshold", -0.5) + 0.3)
        if number % 4 == 3:
            journal.prune(number, "hopeless")
        else:
            journal.complete(number, [1 - distance, params["freeze.every"] + distance, distance**2][: len(spec.objectives)], {})
    return [trial.params for trial in journal.trials]
