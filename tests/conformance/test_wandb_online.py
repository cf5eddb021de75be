"""The mirror against a server on loopback, by the real client: what it is told, and that one that misbehaves costs one warning."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fat_ray.records.manifest import create_study, read_manifest
from fat_ray.records.metrics import AXIS, TABLES_SHOWN, metric_rows
from fat_ray.records.mirror.content import run_config, run_id, study_id
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.records.reader import read_table, run_end, run_start
from fat_ray.spec.study import StudySpec, WandbSpec
from tests.support.runs import start, write_run
from tests.support.wandb_server import ENTITY, KEY, Server, serving

pytestmark = pytest.mark.timeout(120)

RUN = "t0003-s0"
OPERATIONS = {  # of wandb 0.31
    "ArtifactType",
    "CommitArtifact",
    "CreateArtifact",
    "CreateArtifactFiles",
    "CreateArtifactManifest",
    "CreateRunFiles",
    "POST file_stream",
    "PUT upload",
    "ServerFeaturesQuery",
    "UpsertBucket",
    "Viewer",
}
DOCUMENT = {
    "objectives": [{"metric": "val/f1", "direction": "maximize"}],
    "trials": [
        {
            "trial": "t0003",
            "setting": {"freeze.every": 8},
            "at_budget": {"val/f1": 0.5},
            "state": "completed",
            "seeds_done": 1,
            "last": 0.5,
            "best": 0.5,
            "reason": "",
        }
    ],
    "front": ["t0003"],
    "best_compromise": "t0003",
    "counts": {"completed": 1},
    "planned": 1,
    "state": "done",
}


def make_study(directory: Path) -> Path:
    create_study(directory, StudySpec(name="quick"), "name: quick\n")
    write_run(directory)
    return directory


def mirror_to(server_url: str, study: Path, patience_s: float = 100.0) -> tuple[WandbMirror, dict[str, str]]:
    """Mirrors a run and sums the study up; the mirror, and the links that it told."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"WANDB_BASE_URL": server_url, "WANDB_API_KEY": KEY}.items():
            patched.setenv(name, value)
        mirror = WandbMirror(study, WandbSpec(mode="online"), patience_s)
        mirror.check_writable()
        mirror.finish(RUN)
        mirror.sum_up(DOCUMENT)
        mirror.close()
        return mirror, mirror.new_links()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("online") / "study")


@pytest.fixture(scope="module")
def server(study: Path) -> Iterator[Server]:
    with serving() as server:
        mirror_to(server.url, study)
        yield server


def test_the_server_was_asked_what_it_knows_and_nothing_else(server: Server) -> None:
    assert server.unknown == []
    assert server.operations == OPERATIONS


def test_every_row_of_the_records_arrives_once(server: Server, study: Path) -> None:
    served = server.runs[run_id(read_manifest(study), RUN)]
    tables = {table: read_table(study, table, RUN) for table in TABLES_SHOWN}
    expected = metric_rows(tables, start().total_elements)
    *metrics, schedule = served.history
    assert [row[AXIS] for row in metrics] == [row[AXIS] for row in expected]
    for found, wanted in zip(metrics, expected, strict=True):
        plain = {name: value for name, value in wanted.items() if name != "drift/histogram"}
        assert {name: float(found[name]) for name in plain} == pytest.approx(plain, rel=0, abs=0, nan_ok=True)
        assert {name for name in found if not name.startswith("_")} == set(wanted)
    assert {"freeze/schedule", "freeze/picture", AXIS} <= set(schedule)


def test_runs_are_grouped_tagged_and_configured(server: Server, study: Path) -> None:
    served = server.runs[run_id(read_manifest(study), RUN)]
    assert (served.display_name, served.group, served.job_type, served.tags) == (RUN, "quick", "search", ["fisher_drift"])
    assert (served.state, served.attempts) == ("finished", 1)
    expected = json.loads(json.dumps(run_config(run_start(study, RUN), read_manifest(study))))
    assert expected["spec"]["freeze"].pop("options") == {}  # W&B drops empty mappings
    assert served.settings == expected


def test_the_summary_has_last_and_best(server: Server, study: Path) -> None:
    summary, end = server.runs[run_id(read_manifest(study), RUN)].summary, run_end(study, RUN)
    assert end is not None
    assert (summary["status"], summary["last/val/f1"], summary["best/val/f1"]) == ("completed", end.final["val/f1"], end.best["val/f1"])


def test_records_and_specification_are_an_artifact(server: Server, study: Path) -> None:
    files = server.runs[run_id(read_manifest(study), RUN)].artifacts[f"quick-{RUN}"]
    assert {"spec.json", "steps.parquet", "evals.parquet", "drift.parquet", "freezes.parquet", "ends.parquet"} <= set(files)
    assert all(content.startswith(b"PAR1") for name, content in files.items() if name.endswith(".parquet"))


def test_the_picture_of_the_schedule_is_uploaded(server: Server, study: Path) -> None:
    files = server.runs[run_id(read_manifest(study), RUN)].files
    (picture,) = [content for name, content in files.items() if name.startswith("media/images/freeze/picture")]
    assert picture.startswith(b"\x89PNG")


def test_the_study_has_a_run_of_its_own_with_its_front(server: Server, study: Path) -> None:
    served = server.runs[study_id(read_manifest(study))]
    assert (served.display_name, served.group, served.job_type) == ("quick (study)", "quick", "study")
    assert {"study/pareto", "study/trials"} <= set(served.history[-1])
    assert served.summary["best_compromise/val/f1"] == 0.5
    assert {"study.json", "study.yaml"} == set(served.artifacts["quick-study"])


def test_what_was_mirrored_to_its_end_is_not_sent_again(server: Server, study: Path) -> None:
    _, links = mirror_to(server.url, study)
    assert links == {}
    assert server.runs[run_id(read_manifest(study), RUN)].attempts == 1


def test_the_link_is_told(tmp_path: Path) -> None:
    with serving() as server, pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_BASE_URL", server.url)
        patched.setenv("WANDB_API_KEY", KEY)
        patched.delenv("WANDB_MODE")
        make_study(tmp_path / "study")
        mirror = WandbMirror(tmp_path / "study", WandbSpec(), 100.0)  # auto: there is a key
        mirror.advance(RUN)
        mirror.close()
        launch = read_manifest(tmp_path / "study").launch
        assert mirror.new_links() == {RUN: f"{server.url}/{ENTITY}/fat_ray/runs/quick-{RUN}-{launch}"}


@pytest.mark.parametrize(("behaviour", "reason"), [("reject", "invalid API key"), ("hang", "got nowhere for 3 s"), ("gone", "got nowhere")])
def test_a_server_that_misbehaves_costs_one_warning_and_no_records(
    behaviour: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(tmp_path / "study")
    before = {path: path.read_bytes() for path in (study / "records").rglob("*.parquet")}
    with serving(behaviour) as server, caplog.at_level(logging.WARNING):
        mirror_to("http://127.0.0.1:9" if behaviour == "gone" else server.url, study, 60.0 if behaviour == "reject" else 3.0)
    (warning,) = caplog.records
    assert reason in warning.getMessage()
    assert KEY not in warning.getMessage()
    assert {path: path.read_bytes() for path in (study / "records").rglob("*.parquet")} == before
    assert list((study / "wandb" / "files").glob("tmp-wandb-*")) == []
