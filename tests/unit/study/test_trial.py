"""The trial function without Ray: what is trained again after its process died, and what is not."""

from pathlib import Path
from typing import Any

import pytest

from fat_ray.errors import NotBegunError, PlaceLostError
from fat_ray.events import RunEnd, Status
from fat_ray.records.reader import run_end
from fat_ray.spec.job import RunJob
from fat_ray.study import trial
from fat_ray.train.stop import request_stop
from tests.support.jobs import tiny_job
from tests.support.small_studies import write_run

pytestmark = [pytest.mark.cpu_limit(10), pytest.mark.timeout(30)]  # imports Ray Tune


class Stage:
    """Stands in for Ray Train and for Tune."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[RunJob] = []
        self.reports: list[dict[str, Any]] = []
        self.error: Exception | None = None
        monkeypatch.setattr(trial, "fit", self._fit)
        monkeypatch.setattr(trial.tune, "report", self.reports.append)

    def _fit(self, job: RunJob, **_: Any) -> RunEnd:
        self.trained.append(job)
        if self.error is not None:
            raise self.error
        write_run(job)
        end = run_end(job.directory, job.run)
        assert end is not None
        return end

    def play(self, jobs: list[RunJob], **config: Any) -> None:
        trial.run_trial(
            {"jobs": [job.model_dump_json() for job in jobs], "done": 0, "executor": "warm", "placement_timeout_s": 1.0, **config}
        )


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def seeds(directory: Path, retries: int = 1) -> list[RunJob]:
    return [tiny_job(directory, f"t0000-s{seed}", seed=seed, retries=retries) for seed in range(3)]


def test_a_trial_trains_its_seeds(stage: Stage, tmp_path: Path) -> None:
    stage.play(seeds(tmp_path))
    assert [job.run for job in stage.trained] == ["t0000-s0", "t0000-s1", "t0000-s2"]
    assert stage.reports == [{"seeds_done": 1}, {"seeds_done": 2}, {"seeds_done": 3}]
    assert not any(job.resume for job in stage.trained)


def test_a_trial_that_starts_again_repeats_no_seed_and_goes_on_with_the_one_that_had_begun(stage: Stage, tmp_path: Path) -> None:
    jobs = seeds(tmp_path, retries=3)
    write_run(jobs[0])
    write_run(jobs[1], None)
    stage.play(jobs, restarts=2)
    assert [(job.run, job.resume, job.spec.train.retries) for job in stage.trained] == [("t0000-s1", True, 1), ("t0000-s2", False, 3)]
    assert stage.reports == [{"seeds_done": 1}, {"seeds_done": 2}, {"seeds_done": 3}]


def test_retries_are_bounded_also_when_it_is_the_trial_that_dies(stage: Stage, tmp_path: Path) -> None:
    jobs = seeds(tmp_path, retries=1)
    write_run(jobs[0], None)
    stage.play(jobs, restarts=2)
    assert stage.trained == []
    assert stage.reports == [{"failure": "the process of its trial died or was killed, and train.retries = 1 is used up"}]


def test_a_run_that_had_not_begun_does_not_pay_for_a_node_that_left(stage: Stage, tmp_path: Path) -> None:
    stage.play(seeds(tmp_path, retries=0), restarts=1)
    assert [(job.run, job.resume) for job in stage.trained] == [("t0000-s0", False), ("t0000-s1", False), ("t0000-s2", False)]


def test_a_lost_place_is_reported_and_raised_so_that_tune_lets_go_of_it(stage: Stage, tmp_path: Path) -> None:
    stage.error = PlaceLostError("a node left")
    with pytest.raises(PlaceLostError):
        stage.play(seeds(tmp_path))
    assert stage.reports == [{"failure": "a node left"}]


def test_a_stop_before_or_while_it_waits_is_no_failure(stage: Stage, tmp_path: Path) -> None:
    stage.error = NotBegunError("stopped")
    stage.play(seeds(tmp_path))
    request_stop(tmp_path, "t0000-s0", Status.STOPPED)
    stage.play(seeds(tmp_path))
    assert len(stage.trained) == 1
    assert stage.reports == []
