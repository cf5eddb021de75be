"""The runs of a trial: one per seed, with its id, its specification and where its records go."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fat_ray.records.reader import read_table
from fat_ray.spec.baseline import BaselineSpec
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import RunSpec
from fat_ray.spec.study import StudySpec
from fat_ray.study.ledger import Trial
from fat_ray.study.space import with_params


def search_trial(study: StudySpec, directory: Path, number: int, params: Mapping[str, Any]) -> Trial:
    """Trial `number` of the search.

    Raises:
        SpecError: The values do not go together.
    """
    spec = with_params(study.run, params)
    return _trial(study, directory, f"t{number:04d}", spec, number=number, params=params)


def reference_trial(study: StudySpec, directory: Path, baseline: BaselineSpec) -> Trial:
    """A baseline that follows nobody: the base run of the study with the baseline's changes."""
    trial = _trial(study, directory, baseline.name, with_params(study.run, baseline.changes))
    trial.params = baseline.shown
    return trial


def matched_random(study: StudySpec, directory: Path, baseline: BaselineSpec, leader: Trial) -> Trial:
    """A baseline with policy ``random_matched``: the leader's setting and its schedule seed by seed, but with groups drawn at random.

    So it differs from the leader in nothing but which groups freeze, and in what the baseline sets.
    """
    changes = {key: value for key, value in baseline.changes.items() if key != "freeze.follow"}
    trial = _trial(study, directory, baseline.name, with_params(leader.jobs[0].spec, changes), params=leader.jobs[0].params)
    followed = {job.seed: schedule(directory, job.run) for job in leader.jobs}
    trial.jobs = [job.model_copy(update={"follow": followed[job.seed]}) for job in trial.jobs]
    return trial


def schedule(directory: Path, run: str) -> list[tuple[int, int]]:
    """The recorded freeze schedule of a run as (step, active elements after the event)."""
    events = read_table(directory, "events", run)
    return list(zip(events["step"].to_pylist(), events["active_elements"].to_pylist(), strict=True))


def _trial(
    study: StudySpec, directory: Path, name: str, spec: RunSpec, *, number: int | None = None, params: Mapping[str, Any] | None = None
) -> Trial:
    jobs = [
        RunJob(
            study=study.name,
            run=f"{name}-s{seed}",
            trial=number,
            seed=seed,
            role="baseline" if number is None else "search",
            label=name if number is None else "",
            params=dict(params or {}),
            spec=spec,
            directory=str(directory),
        )
        for seed in study.seeds
    ]
    return Trial(name, number, dict(params or {}), jobs)
