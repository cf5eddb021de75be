"""Whole studies of the tiny task on a real Ray: what they leave behind, and what ends them early."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import pytest
import ray
from optuna.trial import FrozenTrial, TrialState

from fat_ray.analysis.status import read_status
from fat_ray.engine.vault import runs_with_checkpoints
from fat_ray.errors import OutputError, ResourceError
from fat_ray.events import Status
from fat_ray.records.environment import git_state
from fat_ray.records.reader import parts, read_table, run_end, run_start, runs
from fat_ray.rules import compromise
from fat_ray.spec.study import StudySpec
from fat_ray.study import cluster
from fat_ray.study.journal import JOURNAL
from fat_ray.study.launch import StudyOutcome, launch
from fat_ray.study.ledger import Close
from fat_ray.view.document import trial_document
from tests.support.ray_session import RaySession
from tests.support.tiny_task import TINY_TASK

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

LEARNING_RATE = {"train.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}}


def tiny_study(
    settings: dict[str, Any] | None = None, *, steps: int = 8, workers: int = 2, cpus: float = 1.0, **sections: Any
) -> StudySpec:
    data = {
        "name": "tiny",
        "task": {"name": TINY_TASK, "settings": settings or {}},
        "train": {"steps": steps, "global_batch": 8, "evaluate_every": 2, "workers": workers, "cpus_per_worker": cpus},
        "fisher": {"every": 1, "groups": {"blocks": 2}},
        "drift": {"bins": 8},
        "freeze": {"threshold": 0.0, "every": 2, "warmup_steps": 2},
        "search": LEARNING_RATE,
        "sampler": {"name": "random", "seed": 1},
        "budget": {"trials": 6},
        "executor": "warm",
        "wandb": {"mode": "disabled"},
        **sections,
    }
    return StudySpec.model_validate(data)


def start(spec: StudySpec, directory: Path, **options: Any) -> StudyOutcome:
    return launch(spec, text="name: tiny\n", directory=directory / "study", quiet=True, **options)


def journal(directory: Path) -> list[FrozenTrial]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(directory / "study" / JOURNAL)))
    return optuna.load_study(study_name="tiny", storage=storage).trials


def loss_at(directory: Path, run: str, step: int) -> float:
    rows = read_table(directory, "evals", run).to_pylist()
    [loss] = [row["value"] for row in rows if (row["step"], row["split"], row["metric"]) == (step, "val", "loss")]
    return float(loss)


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def interrupt_when(condition: Callable[[], bool]) -> threading.Thread:
    """Sends Ctrl-C to this process once the condition holds."""

    def watch() -> None:
        wait_until(condition)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("executor", ["warm", "stock"])
def test_a_study_runs_to_its_end_with_its_baselines_and_leaks_nothing(ray_session: RaySession, tmp_path: Path, executor: str) -> None:
    before = ray_session.usage()
    trials = {"warm": 6, "stock": 1}[executor]  # all two CPUs are for the workers: a driver that held a share would wait for ever
    events: list[Mapping[str, Any]] = []
    outcome = start(tiny_study(executor=executor, budget={"trials": trials}, wandb={"mode": "offline"}), tmp_path, on_event=events.append)

    names = ["none-s0", *(f"t{number:04d}-s0" for number in range(trials)), "random_matched-s0"]
    assert [(run.run, run.status, run.reason) for run in outcome.runs] == [(name, Status.COMPLETED, "") for name in names]
    assert (outcome.failed, outcome.closed, outcome.notes) == (0, None, ())
    assert runs(outcome.directory) == sorted(names)

    told = journal(tmp_path)
    assert [trial.state for trial in told] == [TrialState.COMPLETE] * trials
    for trial in told:
        end = run_end(outcome.directory, f"t{trial.number:04d}-s0")
        assert end is not None
        assert trial.values == [end.final["val/f1"], end.mean_active]
        begun = run_start(outcome.directory, f"t{trial.number:04d}-s0")
        assert begun.params == trial.params
        assert begun.environment["git_commit"] == git_state()["git_commit"]  # workers stay in the directory of the driver

    leader = told[int(compromise({str(trial.number): trial.values for trial in told}, ["maximize", "minimize"]))]
    followed = read_table(outcome.directory, "events", f"t{leader.number:04d}-s0")["step"].to_pylist()
    assert read_table(outcome.directory, "events", "random_matched-s0")["step"].to_pylist() == followed
    assert run_start(outcome.directory, "random_matched-s0").params == leader.params

    assert len(list((outcome.directory / "wandb").glob("offline-run-*"))) == trials + 3  # one sums up the study
    assert sorted(path.name for path in (outcome.directory / "control").iterdir()) == ["beacon.json", "driver.json", "driver.lock"]
    assert runs_with_checkpoints(outcome.directory) == sorted(f"{name}-s0" for name in events[-1]["front"])
    check_events_and_status(events, outcome, [name.removesuffix("-s0") for name in names])
    wait_until(lambda: ray_session.usage() == before, 30)


def check_events_and_status(events: Sequence[Mapping[str, Any]], outcome: StudyOutcome, names: Sequence[str]) -> None:
    """Whoever listens and whoever looks at the directory is told the same."""
    assert [event["event"] for event in (events[0], events[-1])] == ["study_started", "study_ended"]
    for name in names:
        told = [event["event"] for event in events if event.get("trial") == name]
        assert told == ["trial_started", *["trial_evaluated"] * 4, "trial_ended"]
    seen = read_status(outcome.directory)
    assert (seen.state, seen.done, [trial.name for trial in seen.front]) == ("done", len(names), events[-1]["front"])
    ended = {event["trial"]: event for event in events if event["event"] == "trial_ended"}
    for trial in seen.trials:
        shown = trial_document(trial, seen.objectives)
        del shown["elapsed_s"]  # a run's records begin when its process does, its trial earlier
        assert shown == {key: ended[trial.name][key] for key in shown}


def test_trials_that_break_fail_with_their_reason_and_the_study_goes_on(
    ray_session: RaySession, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trouble = {"task.settings.trouble.3": {"type": "categorical", "choices": ["nan", "kill", "raise", f"file:{tmp_path / 'fine'}"]}}
    spec = tiny_study(
        {"trouble": {"3": "litter"}}, search=trouble, budget={"trials": 8}, baselines=["random_matched"], sampler={"name": "qmc"}
    )
    outcome = start(spec, tmp_path)
    reasons: dict[str, set[tuple[Status, str]]] = {}
    for trial in journal(tmp_path):
        [run] = [run for run in outcome.runs if run.run == f"t{trial.number:04d}-s0"]
        what = trial.params["task.settings.trouble.3"].partition(":")[0]
        assert trial.state is (TrialState.COMPLETE if what == "file" else TrialState.FAIL)
        assert run.reason in trial.user_attrs.get("reason", run.reason)
        end = run_end(outcome.directory, run.run)
        assert end is not None
        assert end.status is run.status
        reasons.setdefault(what, set()).add((run.status, run.reason))
    assert set(reasons) == {"nan", "kill", "raise", "file"}
    assert {status for status, _ in reasons["nan"]} == {Status.DIVERGED}
    assert all("the training loss became NaN or infinite at step 3" in reason for _, reason in reasons["nan"])
    assert {status for status, _ in reasons["kill"] | reasons["raise"]} == {Status.FAILED}
    assert all("died or was killed" in reason for _, reason in reasons["kill"])
    assert all("the tiny task was told to raise" in reason for _, reason in reasons["raise"])
    assert reasons["file"] == {(Status.COMPLETED, "")}
    assert outcome.runs[-1].run == "random_matched-s0"
    assert outcome.runs[-1].status is Status.COMPLETED
    assert capfd.readouterr().out == ""
    assert "worker died" in (outcome.directory / "logs" / "ray.log").read_text()


def test_what_asha_stops_is_pruned_and_its_workers_leave_by_themselves(ray_session: RaySession, tmp_path: Path) -> None:
    spec = tiny_study(
        {"slow_s": 0.05},
        steps=24,
        objectives=[{"metric": "val/loss", "direction": "minimize"}, {"metric": "mean_active", "direction": "minimize"}],
        scheduler={"name": "asha", "metric": "val/loss", "direction": "minimize", "grace_steps": 4},
        budget={"trials": 8},
        baselines=[],
    )
    outcome = start(spec, tmp_path)
    told = journal(tmp_path)
    at_first_rung: list[float] = []
    hopeless = set()
    for trial in told:
        loss = loss_at(outcome.directory, f"t{trial.number:04d}-s0", 4)
        if at_first_rung and loss > median(at_first_rung):
            hopeless.add(trial.number)
        at_first_rung.append(loss)
    assert hopeless
    assert hopeless <= {trial.number for trial in told if trial.state is TrialState.PRUNED}
    for number in hopeless:
        end = run_end(outcome.directory, f"t{number:04d}-s0")
        assert end is not None
        assert (end.status, 4 <= end.steps < 24) == (Status.PRUNED, True)
    assert outcome.failed == 0
    assert Counter(run.status for run in outcome.runs)[Status.COMPLETED] >= 1


def test_every_seed_is_reported_and_baselines_of_ones_own_come_first(ray_session: RaySession, tmp_path: Path) -> None:
    spec = tiny_study(
        seeds=[0, 1],
        workers=1,
        objectives=[{"metric": "val/loss", "direction": "minimize"}],
        scheduler={"name": "patience", "metric": "val/loss", "direction": "minimize", "patience": 50},
        budget={"trials": 1},
        baselines=[{"name": "half", "policy": "fisher_drift", "set": {"freeze.floor": 0.5}}],
    )
    outcome = start(spec, tmp_path)
    assert [(run.run, run.status) for run in outcome.runs] == [
        (f"{trial}-s{seed}", Status.COMPLETED) for trial in ("half", "t0000") for seed in (0, 1)
    ]
    assert run_start(outcome.directory, "half-s1").spec["freeze"]["floor"] == 0.5
    [told] = journal(tmp_path)
    losses = {step: [loss_at(outcome.directory, f"t0000-s{seed}", step) for seed in (0, 1)] for step in (2, 4, 6, 8)}
    means = {**{step: first for step, (first, _) in losses.items()}, **{8 + step: sum(both) / 2 for step, both in losses.items()}}
    assert told.intermediate_values == pytest.approx(means)
    assert told.value == pytest.approx(means[16])
    assert told.user_attrs["seed_values"] == {"val/loss": pytest.approx(losses[8])}


def test_ctrl_c_stops_the_running_trial_and_ends_cleanly(ray_session: RaySession, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    watcher = interrupt_when(lambda: bool(parts(directory, "evals", "none-s0")))
    outcome = start(tiny_study({"slow_s": 0.1}, steps=400), tmp_path)
    watcher.join()
    assert (outcome.interrupted, outcome.closed) == (True, Close.INTERRUPTED)
    assert [(run.run, run.status) for run in outcome.runs] == [("none-s0", Status.STOPPED)]
    end = run_end(directory, "none-s0")
    assert end is not None
    assert (end.status, 0 < end.steps < 400) == (Status.STOPPED, True)
    assert journal(tmp_path) == []
    assert read_status(directory).state == "stopped"
    assert runs_with_checkpoints(directory) == ["none-s0"]  # it may go on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("budget", "why"), [({"hours": 20 / 3600}, Close.OUT_OF_TIME), ({"flops": 1.0}, Close.OUT_OF_FLOPS)])
def test_a_budget_that_is_used_up_stops_what_runs(ray_session: RaySession, tmp_path: Path, budget: dict[str, float], why: Close) -> None:
    seeds = [0, 1] if why is Close.OUT_OF_FLOPS else [0]
    spec = tiny_study({"slow_s": 0.1}, steps=4000, budget={"trials": 6, **budget}, baselines=[], seeds=seeds)
    outcome = start(spec, tmp_path)
    assert (outcome.closed, outcome.interrupted) == (why, False)
    assert [(run.run, run.status) for run in outcome.runs] == [("t0000-s0", Status.STOPPED)]  # its second seed does not start
    [told] = journal(tmp_path)
    assert told.state is TrialState.FAIL
    assert "stopped" in told.user_attrs["reason"]


def test_an_infeasible_study_is_refused_and_leaves_nothing(ray_session: RaySession, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"needs 2 workers x 4 CPUs = 8 CPUs, the cluster has 2"):
        start(tiny_study(cpus=4.0), tmp_path)
    assert not (tmp_path / "study").exists()


def test_a_directory_with_a_study_is_refused_and_kept(ray_session: RaySession, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    with pytest.raises(OutputError, match="already holds a study"):
        start(tiny_study(), tmp_path)
    assert (tmp_path / "study" / "study.json").read_text() == "{}"


@pytest.mark.timeout(60)  # Ray itself tries for two minutes
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "localhost", "ray://127.0.0.1:10001", "127.0.0.1:99999"])
def test_an_unreachable_address_is_refused_soon(tmp_path: Path, address: str) -> None:
    with pytest.raises(ResourceError) as caught:
        start(tiny_study(), tmp_path, address=address)
    assert address in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_something_else_at_the_address_is_refused_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "HEALTH_TIMEOUT_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ResourceError, match=f"no Ray cluster at {address}: something listens there"):
            start(tiny_study(), tmp_path, address=address)


def test_a_running_ray_is_found_at_its_address(ray_session: RaySession) -> None:
    with cluster.connect(ray_session.address) as nodes:
        assert [node["CPU"] for node in nodes] == [2.0]
    assert ray.is_initialized()
