"""Samplers: the same study and seed suggest the same trials, also when the driver changes. GP: tests/numerics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fat_ray.study.journal import Journal
from tests.support.sampling import search, searching
from tests.support.small_studies import small_study

pytestmark = [pytest.mark.timeout(60), pytest.mark.cpu_limit(3)]  # a few dozen suggestions; journals are synced to disk

SAMPLERS = ["tpe", "nsga2", "nsga3", "cmaes", "qmc", "random", "grid"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_studies_agree_and_so_does_one_that_another_driver_continues(tmp_path: Path, name: str) -> None:
    spec = searching(name)
    whole = search(spec, tmp_path / "whole", 12)
    assert len(whole) == 12
    assert len({tuple(params.items()) for params in whole}) > 4
    assert search(spec, tmp_path / "again", 12) == whole
    for cut in (1, 5, 9):
        search(spec, tmp_path / f"cut{cut}", cut)
        assert search(spec, tmp_path / f"cut{cut}", 12) == whole
    assert search(searching(name, seed=1), tmp_path / "other", 12) != whole


CONTINUE = """
import json, sys
from pathlib import Path
from tests.support.sampling import search, searching
print(json.dumps({name: search(searching(name), Path(sys.argv[1]) / name, 12) for name in sys.argv[2:]}))
"""


def test_another_process_with_other_hashes_continues_alike(tmp_path: Path) -> None:
    whole = {name: search(searching(name), tmp_path / f"{name}-whole", 12) for name in SAMPLERS}
    for name in SAMPLERS:
        search(searching(name), tmp_path / name, 6)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", CONTINUE, str(tmp_path), *SAMPLERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == whole


@pytest.mark.parametrize("name", ["tpe", "nsga2", "nsga3", "qmc", "random", "grid"])
def test_conditional_parameters_are_there_when_their_condition_holds_and_only_then(tmp_path: Path, name: str) -> None:
    for params in search(searching(name), tmp_path, 12):
        assert ("freeze.threshold" in params) == (params["freeze.policy"] == "fisher_drift")


@pytest.mark.parametrize("objectives", [1, 3])
@pytest.mark.parametrize("name", ["tpe", "nsga2", "nsga3", "qmc", "random", "grid"])
def test_samplers_take_one_to_three_objectives(tmp_path: Path, name: str, objectives: int) -> None:
    assert len(search(searching(name, objectives=objectives), tmp_path, 10)) == 10


def test_qmc_fills_conditional_dimensions_evenly_too(tmp_path: Path) -> None:
    found = search(searching("qmc", trials=32), tmp_path, 32)
    lower = sum(params["freeze.threshold"] < -0.5 for params in found if "freeze.threshold" in params)
    drift = sum("freeze.threshold" in params for params in found)
    assert drift == 16
    assert 6 <= lower <= 10


def test_the_second_generation_of_a_genetic_sampler_descends_from_the_first(tmp_path: Path) -> None:
    spec = searching("nsga2", conditional=False, trials=40)
    found = search(spec, tmp_path, 24)
    first = {params["freeze.threshold"] for params in found[:5]}
    later = [params["freeze.threshold"] in first for params in found[8:]]
    assert sum(later) > len(later) / 2


def test_an_unset_population_leaves_most_of_a_small_budget_to_later_generations() -> None:
    from fat_ray.study.sampler import build_sampler

    sizes = {
        trials: build_sampler(small_study(sampler={"name": "nsga3"}, budget={"trials": trials}), 0, []).population_size  # type: ignore[union-attr]
        for trials in (4, 40, 1000)
    }
    assert sizes == {4: 4, 40: 10, 1000: 50}


def test_a_line_that_was_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    spec = searching("random")
    whole = search(spec, tmp_path / "whole", 8)
    search(spec, tmp_path / "cut", 4)
    with (tmp_path / "cut" / "optuna.journal").open("ab") as file:
        file.write(b'{"op_code":5,"trial_i')
    assert len(Journal(spec, tmp_path / "cut").trials) == 4
    assert search(spec, tmp_path / "cut", 8) == whole


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trial_that_was_being_asked_for_is_asked_for_again_with_the_same_result(tmp_path: Path, name: str) -> None:
    spec = searching(name)
    whole = search(spec, tmp_path / "whole", 9)
    search(spec, tmp_path / "cut", 6)
    path = tmp_path / "cut" / "optuna.journal"
    before = path.read_bytes()
    Journal(spec, tmp_path / "cut").ask()
    lines = path.read_bytes()[len(before) :].splitlines(keepends=True)
    assert len(lines) >= 4
    for count in range(1, len(lines)):
        path.write_bytes(before + b"".join(lines[:count]))
        assert [len(Journal(spec, tmp_path / "cut").trials), path.read_bytes()] == [6, before]
    assert search(spec, tmp_path / "cut", 9) == whole


def test_opening_a_journal_again_writes_nothing_and_waits_for_no_lock_of_a_killed_driver(tmp_path: Path) -> None:
    spec = searching("random")
    search(spec, tmp_path, 3)
    path = tmp_path / "optuna.journal"
    before = path.read_bytes()
    Path(f"{path}.lock").symlink_to(path)
    assert len(search(spec, tmp_path, 3)) == 3
    assert path.read_bytes() == before
    assert len(search(spec, tmp_path, 4)) == 4  # Optuna would wait half a minute for the lock
