"""The runs of a trial: one per seed, with its id, its specification and where its records go."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fat_ray.records.reader import read_table
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


def full_fine_tuning(study: StudySpec, directory: Path) -> Trial:
    """The baseline ``none``: the base run of the study without freezing."""
    return _trial(study, directory, "none", with_policy(study.run, "none"))


def matched_random(study: StudySpec, directory: Path, leader: Trial) -> Trial:
    """The baseline ``random_matched``: the leader's setting and its schedule seed by seed, but with groups drawn at random.

    So it differs from the leader in nothing but which groups freeze.
    """
    spec = with_policy(leader.jobs[0].spec, "random_matched")
    trial = _trial(study, directory, "random_matched", spec, params=leader.params)
    followed = {job.seed: schedule(directory, job.run) for job in leader.jobs}
    trial.jobs = [job.model_copy(update={"follow": followed[job.seed]}) for job in trial.jobs]
    return trial


def with_policy(spec: RunSpec, policy: str) -> RunSpec:
    """The run under another freeze policy."""
    return with_params(spec, {"freeze.policy": policy})


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
