"""What the picture of a study says of it."""

import pytest

from fat_ray.view.picture import Picture
from tests.support.pictures import ACTIVE, F1, line, picture


def test_trials_are_done_running_or_queued() -> None:
    states = ["completed", "pruned", "diverged", "running", "stopping", "waiting"]
    shown = picture(*(line(number, state) for number, state in enumerate(states)))
    assert (shown.done, shown.running, shown.queued) == (3, 2, 5)


@pytest.mark.parametrize(("state", "queued"), [("done", 0), ("failed", 0), ("stopped", 9), ("gone", 9)])
def test_when_the_driver_is_gone_no_time_is_left_and_once_it_is_over_nothing_is_queued(state: str, queued: int) -> None:
    shown = picture(line(0, "completed"), state=state)
    assert (shown.queued, shown.time_left_s) == (queued, None)


def test_a_trial_that_was_stopped_is_not_done() -> None:
    shown = picture(line(0, "completed"), line(1, "stopped", step=15, steps=60), state="stopped")
    assert (shown.done, shown.queued, shown.progress) == (1, 8, pytest.approx(0.125))


def test_progress_counts_seeds_and_steps() -> None:
    running = line(1, seeds=2, seeds_done=1, step=15, steps=60)
    assert running.progress == pytest.approx((1 + 0.25) / 2)
    assert picture(line(0, "pruned"), running, total=5).progress == pytest.approx((1 + 0.625) / 5)


def test_time_left_is_what_the_typical_trial_took() -> None:
    ended = [line(number, "completed", elapsed_s=seconds) for number, seconds in enumerate((100.0, 20.0, 20.0))]
    failed = line(3, "failed", elapsed_s=1.0)  # says nothing about the others
    running = [line(4, step=30), line(5, step=30)]
    assert picture(*ended, failed, *running).time_left_s == pytest.approx(20.0 * (10 - 5) / 2)


def test_before_any_has_ended_the_running_ones_are_prolonged() -> None:
    assert picture(line(0, step=15, steps=60, elapsed_s=10.0)).time_left_s == pytest.approx(40.0 * (10 - 0.25))
    assert picture(line(0, step=1, steps=60, elapsed_s=10.0)).time_left_s is None


def completed(*values: tuple[float, float], **given: object) -> Picture:
    return picture(*(line(number, "completed", values=list(pair)) for number, pair in enumerate(values)), **given)


def test_the_front_has_what_nobody_beats_and_completed_trials_only() -> None:
    shown = completed((0.6, 100.0), (0.5, 40.0), (0.5, 60.0), (0.7, 90.0))
    assert [trial.name for trial in shown.front] == ["t0003", "t0001"]
    assert shown.best is not None
    assert shown.best.name == "t0003"


def test_with_one_objective_the_front_is_the_best() -> None:
    trials = [line(number, "completed", values=[value]) for number, value in enumerate((0.3, 0.1, 0.2))]
    assert [trial.name for trial in picture(*trials, objectives=[ACTIVE]).front] == ["t0001"]
    assert [trial.name for trial in picture(*trials, objectives=[F1]).front] == ["t0000"]


def test_a_baseline_may_be_on_the_front_but_is_never_the_best_compromise() -> None:
    none = line(0, "completed", name="none", values=[0.9, 10.0], is_baseline=True)
    trial = line(1, "completed", values=[0.5, 40.0])
    shown = picture(none, trial)
    assert [found.name for found in shown.front] == ["none"]
    assert shown.best is trial
    assert picture(none).best is None
