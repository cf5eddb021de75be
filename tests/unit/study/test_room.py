"""What becomes of a study whose cluster shrinks: without Ray, with a clock and nodes made up here."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.tune.experiment import Trial as TuneTrial

from fat_ray.events import Status
from fat_ray.study import room
from fat_ray.study.callbacks import Supervisor
from fat_ray.study.ledger import Close
from fat_ray.study.room import Closing, Room
from fat_ray.train.resources import Resources
from fat_ray.train.stop import stop_requested
from tests.support.small_studies import small_study, write_run
from tests.unit.study.test_search import Driver

pytestmark = pytest.mark.cpu_limit(10)  # imports Ray Tune

ENOUGH, TOO_FEW = [{"CPU": 1.0}, {"CPU": 1.0}], [{"CPU": 1.0}]
REASON = (
    "for 60 s (budget.placement_timeout_s) the cluster was too small: "
    "a run needs 2 workers x 1 CPUs = 2 CPUs, the cluster has 1 (train.workers, train.cpus_per_worker)"
)


class Cluster:
    """Its nodes can be set."""

    nodes: Sequence[Resources] = ENOUGH

    def __call__(self) -> Sequence[Resources]:
        return self.nodes


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    budget = {"trials": 3, "placement_timeout_s": 60.0}
    return Driver(small_study(train={"steps": 8, "evaluate_every": 2, "workers": 2}, budget=budget, baselines=[]), tmp_path, concurrency=2)


def test_a_node_that_comes_back_in_time_is_no_reason_to_give_up(driver: Driver) -> None:
    cluster = Cluster()
    watch = Room(driver.spec, driver.ledger, cluster)
    for now_s, nodes in ((0.0, ENOUGH), (10.0, TOO_FEW), (69.0, TOO_FEW), (70.0, ENOUGH), (80.0, TOO_FEW), (139.0, TOO_FEW)):
        cluster.nodes = nodes
        watch.look(now_s)
    assert driver.ledger.close is None


def test_a_study_that_fits_no_more_fails_what_waits_and_what_runs_with_the_numbers(driver: Driver, tmp_path: Path) -> None:
    cluster, closing = Cluster(), Closing(driver.ledger)
    running, waiting = driver.start(), driver.start()
    running.started_s = 1.0
    watch = Room(driver.spec, driver.ledger, cluster)
    cluster.nodes = TOO_FEW
    watch.look(10.0)
    watch.look(69.0)
    assert not closing.stop_all()
    watch.look(70.0)
    assert driver.ledger.close is Close.NO_ROOM
    assert driver.ledger.failure == f"the study ended early: {REASON}"
    Supervisor(driver.ledger, tmp_path, driver.spec.budget).on_step_begin(0, [])
    assert stop_requested(tmp_path, running.jobs[0].run) is Status.STOPPED
    assert not closing.stop_all(), "the running trial may still write its last record"
    write_run(running.jobs[0], None)
    driver.search.on_trial_complete("id1", {})
    assert closing.stop_all(), "what only waits would wait for ever"
    driver.search.close()
    assert [(trial.status, trial.reason) for trial in (running, waiting)] == [(Status.FAILED, REASON)] * 2
    assert [trial.state for trial in driver.journal()] == [TrialState.FAIL] * 2


def test_a_trial_that_hangs_without_its_nodes_is_ended_after_a_while(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    closing = Closing(driver.ledger)
    driver.start().started_s = 1.0
    driver.ledger.close = Close.NO_ROOM
    assert not closing.stop_all()
    monkeypatch.setattr(room, "LEAVE_S", -1.0)
    assert closing.stop_all()
    driver.ledger.close = Close.INTERRUPTED
    assert not closing.stop_all(), "an interrupted trial takes the time that its last record needs"


def test_an_interrupted_study_does_not_wait_for_room(driver: Driver) -> None:
    driver.start()
    closing = Closing(driver.ledger)
    assert not closing.stop_all()
    driver.ledger.close = Close.INTERRUPTED
    assert closing.stop_all()
    driver.search.close()
    assert [trial.status for trial in driver.ledger.trials] == [Status.STOPPED]


def test_waiting_for_others_is_said_once_and_goes_on(driver: Driver) -> None:
    watch = Room(driver.spec, driver.ledger, Cluster())
    first = driver.start()
    for now_s in (0.0, 59.0):
        watch.look(now_s)
    assert driver.ledger.notes == []
    for now_s in (60.0, 500.0, 1000.0):
        watch.look(now_s)
    assert driver.ledger.notes == ["for 60 s no trial could start: others held the cluster, or its processes start slowly"]
    assert driver.ledger.close is None
    assert first.status is None


def test_a_trial_whose_process_died_waits_anew_and_knows_how_often(driver: Driver) -> None:
    trial = driver.start()
    trial.started_s = 1.0
    trial.note({"failure": "a part of its place was on a node that left the cluster"})
    as_tune_knows_it = TuneTrial("none", trial_id=driver.id, config={}, stub=True)
    watch = Room(driver.spec, driver.ledger, Cluster())
    for count in (1, 2):
        watch.on_trial_recover(0, [], as_tune_knows_it)
        assert as_tune_knows_it.config["restarts"] == count
    assert (trial.started_s, trial.failure) == (None, None)
