"""What a run does with its checkpoints: which one it goes on from, when it refuses, and what of it can be exported."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fat_ray.engine import checkpoint
from fat_ray.engine.export import Exported, export_model
from fat_ray.engine.snapshot import _plain, write_rank
from fat_ray.engine.vault import MANIFEST, VERSION, checkpoint_path, checkpoints, step_of
from fat_ray.errors import InputError, OutputError, RecordError
from fat_ray.events import Status
from fat_ray.freeze.lora import add_adapters
from fat_ray.records.parquet import ParquetSink
from fat_ray.records.reader import parts, read_table, run_end
from fat_ray.spec.job import RunJob
from fat_ray.spec.run import FreezeSpec
from tests.support.interruption import outcome, train_until
from tests.support.jobs import task_of, tiny_job


def job(directory: Path, **settings: Any) -> RunJob:
    """Saves at 2, 4, 6 and 8."""
    return tiny_job(directory, **{"workers": 1, "checkpoint": None, "batch_norm": True, **settings})


def steps(of: RunJob) -> list[int]:
    return [step_of(path) for path in checkpoints(of.directory, of.run)]


def resumed_at(of: RunJob) -> list[int]:
    return list(read_table(of.directory, "resumptions", of.run)["step"].to_pylist())


@pytest.fixture
def killed(tmp_path: Path) -> RunJob:
    """A run with checkpoints at 2 and 4 that died in step 4."""
    found = job(tmp_path / "killed")
    assert train_until(found, lifetime=15) is None
    assert steps(found) == [4, 2]
    return found


@pytest.fixture
def whole(tmp_path: Path) -> RunJob:
    found = job(tmp_path / "whole")
    train_until(found)
    return found


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(("damaged", "left"), [((), 4), ((4,), 2), ((4, 2), 0)])
def test_a_damaged_checkpoint_is_passed_over(
    killed: RunJob, whole: RunJob, damaged: tuple[int, ...], left: int, caplog: pytest.LogCaptureFixture
) -> None:
    for step in damaged:
        flip(checkpoint_path(killed.directory, killed.run, step) / "model.safetensors")
    train_until(killed)
    assert resumed_at(killed) == [left]
    assert [f"step-{step:08d}" in record.message for step, record in zip(damaged, caplog.records, strict=True)] == [True] * len(damaged)
    assert outcome(killed) == outcome(whole)


def test_a_checkpoint_ahead_of_the_records_is_passed_over(killed: RunJob, whole: RunJob, caplog: pytest.LogCaptureFixture) -> None:
    """A power cut may take the last parts of the records with it."""
    parts(killed.directory, "steps", killed.run)[-1].unlink()
    train_until(killed)
    assert resumed_at(killed) == [2]
    assert "ahead of the records" in caplog.text
    assert outcome(killed) == outcome(whole)


def test_readers_never_find_a_row_twice_while_records_are_taken_back(killed: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = ParquetSink(killed.directory, killed.run)
    state = json.loads((checkpoints(killed.directory, killed.run)[-1] / "state.json").read_text())
    before = {table: read_table(killed.directory, table, killed.run).num_rows for table in state["records"]}
    assert sink.rewind(state["records"])
    after = {table: read_table(killed.directory, table, killed.run).num_rows for table in state["records"]}
    assert (before["steps"], after["steps"]) == (4, 2)
    assert after["runs"] == after["groups"] // 6 == 1
    assert sink.position()["steps"] > state["records"]["steps"]  # numbers are not used again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: {"seed": 1}, "seed is 1, was 0"),
        (lambda job: {"spec": changed(job, "optimizer", lr=0.5)}, r"train\.optimizer\.lr is 0\.5, was 0\.001"),
    ],
)
def test_another_job_is_refused_with_the_field(killed: RunJob, change: Callable[[RunJob], dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_until(killed.model_copy(update=change(killed)))
    assert resumed_at(killed) == []


def changed(of: RunJob, section: str, **values: Any) -> Any:
    train = of.spec.train
    return of.spec.model_copy(update={"train": train.model_copy(update={section: getattr(train, section).model_copy(update=values)})})


def test_what_is_kept_may_change(killed: RunJob, whole: RunJob) -> None:
    train_until(killed.model_copy(update={"spec": changed(killed, "checkpoint", every=1, keep=3)}))
    assert steps(killed) == [8, 7, 6]
    found, expected = outcome(killed), outcome(whole)
    assert all(found[name] == expected[name] for name in found if name != "ends")


def test_a_newer_checkpoint_is_refused_rather_than_passed_over(killed: RunJob) -> None:
    path = checkpoints(killed.directory, killed.run)[0] / MANIFEST
    path.write_text(path.read_text().replace(f'"{VERSION}"', '"9.0"'))
    with pytest.raises(RecordError, match="use a newer fat_ray"):
        train_until(killed)


def test_a_task_whose_model_has_changed_is_named(killed: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(task_of(killed)).build_model
    monkeypatch.setattr(type(task_of(killed)), "build_model", lambda task: torch.nn.Sequential(*original(task), torch.nn.Linear(1, 1)))
    with pytest.raises(RecordError, match=r"does not fit the task, which has changed since: .*9\.weight"):
        train_until(killed)


@pytest.mark.parametrize(("every", "expected"), [(None, [8, 6]), (3, [8, 6]), (5, [8, 5]), (0, [])])
def test_checkpoints_are_saved_when_the_spec_says(tmp_path: Path, every: int | None, expected: list[int]) -> None:
    saved = job(tmp_path, checkpoint=every)
    train_until(saved)
    assert steps(saved) == expected


def test_a_run_without_checkpoints_begins_anew_and_leaves_every_row_once(tmp_path: Path, whole: RunJob) -> None:
    killed = job(tmp_path / "killed", checkpoint=0)
    train_until(killed, lifetime=15)
    train_until(killed)
    assert resumed_at(killed) == [0]
    assert read_table(killed.directory, "steps", killed.run)["step"].to_pylist() == list(range(8))
    expected = read_table(whole.directory, "steps", whole.run)["loss"]
    assert read_table(killed.directory, "steps", killed.run)["loss"].to_pylist() == expected.to_pylist()


def test_training_goes_on_when_a_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = checkpoint.seal

    def full(path: Path, run: str) -> None:
        if step_of(path) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, run)

    monkeypatch.setattr(checkpoint, "seal", full)
    running = job(tmp_path)
    end = train_until(running)
    assert end is not None
    assert end.status is Status.COMPLETED
    assert "checkpoint at step 4 could not be written: No space left on device" in caplog.text
    assert [path.name for path in sorted((tmp_path / "checkpoints" / running.run).iterdir())] == ["step-00000006", "step-00000008"]


def test_a_failed_or_stopped_end_is_taken_back(tmp_path: Path, whole: RunJob) -> None:
    broken = job(tmp_path / "broken", trouble={"5": "raise"})
    with pytest.raises(KeyError):
        train_until(broken)
    assert run_end(broken.directory, broken.run).status is Status.FAILED  # type: ignore[union-attr]
    train_until(broken)
    assert resumed_at(broken) == [4]
    assert read_table(broken.directory, "ends", broken.run)["status"].to_pylist() == ["completed"]
    assert outcome(broken)["model.safetensors"] == outcome(whole)["model.safetensors"]


def test_costs_of_all_lives_add_up(killed: RunJob) -> None:
    train_until(killed)
    steps_s = read_table(killed.directory, "steps", killed.run)["step_s"].to_pylist()
    end = run_end(killed.directory, killed.run)
    assert end is not None
    assert end.train_s == pytest.approx(sum(steps_s))
    assert end.wall_s > end.train_s
    assert end.worker_s == pytest.approx(end.wall_s, rel=1e-3)


def test_what_is_no_tensor_cannot_be_saved() -> None:
    with pytest.raises(RecordError, match=r"head\._extra_state of the model's state is a dict"):
        _plain({"weight": torch.zeros(2), "head._extra_state": {"scale": 1}})  # type: ignore[dict-item]


def test_tied_weights_are_saved_under_both_names() -> None:
    weight = torch.arange(6.0).reshape(2, 3).t()
    saved = _plain({"first": weight, "second": weight})
    assert all(torch.equal(value, weight) and value.is_contiguous() for value in saved.values())
    assert saved["first"].data_ptr() != saved["second"].data_ptr()


def test_arrays_that_stand_otherwise_in_memory_are_saved_as_they_are(tmp_path: Path) -> None:
    """Squared gradients of a weight in channels last are no array in C order, and may wait for their other half."""
    waiting = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    meter = SimpleNamespace(share=lambda: {"waiting/weight/squares": waiting})
    write_rank(tmp_path, SimpleNamespace(device=torch.device("cpu"), freezer=SimpleNamespace(meter=meter)))  # type: ignore[arg-type]
    with safe_open(tmp_path / "rank-0.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("average/waiting/weight/squares"), waiting)


def study_of(of: RunJob) -> Path:
    (Path(of.directory) / "study.json").write_text("{}")
    return Path(of.directory)


def test_the_plain_model_is_exported(whole: RunJob, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert export_model(study_of(whole), out) == Exported(whole.run, 8, 8)
    assert out.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666
    plain = task_of(whole).build_model()
    plain.load_state_dict(load_file(out))
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert {name: metadata[name] for name in ("study", "run", "seed", "step")} == {
        "study": "tiny",
        "run": whole.run,
        "seed": "0",
        "step": "8",
    }
    assert len(metadata["spec_sha256"]) == 64


def test_the_newest_whole_checkpoint_is_exported(whole: RunJob, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(checkpoint_path(whole.directory, whole.run, 8) / "model.safetensors")
    assert export_model(study_of(whole) / whole.run, tmp_path / "a").step == 6
    assert "passed over" in caplog.text
    flip(checkpoint_path(whole.directory, whole.run, 6) / "state.json")
    with pytest.raises(RecordError, match="no checkpoint of run-s0 is whole"):
        export_model(study_of(whole), tmp_path / "b")


def test_export_says_what_is_wrong(whole: RunJob, tmp_path: Path) -> None:
    study, out = study_of(whole), tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="neither a study's directory"):
        export_model(tmp_path / "nothing" / "here", out)
    with pytest.raises(InputError, match=r"no checkpoint of a run t0001-s0; it holds those of run-s0"):
        export_model(study / "t0001-s0", out)
    with pytest.raises(OutputError, match="cannot write"):
        export_model(study, tmp_path / "no" / "such" / "place")
    (study / "checkpoints" / "t0001-s0" / "step-00000001").mkdir(parents=True)
    with pytest.raises(InputError, match=r"2 runs; give one of them: .*whole/run-s0, .*whole/t0001-s0"):
        export_model(study, out)
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_model(study, out)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match=r"train\.checkpoint\.every"):
        export_model(tmp_path, tmp_path / "other")
    assert out.read_text() == "mine"


def test_adapters_are_merged_in_what_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    kind, spec = type(task_of(job(tmp_path))), FreezeSpec(policy="lora", targets=["6"])
    original = kind.build_model
    monkeypatch.setattr(kind, "build_model", lambda task: add_adapters(original(task), spec, 0, lambda _: True))
    adapted = job(tmp_path / "adapted")
    train_until(adapted, lifetime=15)
    train_until(adapted)
    export_model(study_of(adapted), tmp_path / "model.safetensors")
    trained = task_of(adapted).build_model()
    trained.load_state_dict(load_file(checkpoint_path(adapted.directory, adapted.run, 8) / "model.safetensors"))
    monkeypatch.undo()
    plain = task_of(adapted).build_model()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = task_of(adapted).train_set().batch([0, 1])[0]
    assert any("lora_" in name and parameter.abs().sum() > 0 for name, parameter in trained.named_parameters() if "lora_B" in name)
    torch.testing.assert_close(plain.eval()(images), trained.eval()(images))
