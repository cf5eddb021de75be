import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from fat_ray.analysis.compare import compare
from fat_ray.analysis.render import as_csv, as_json, as_table
from tests.support.studies import FakeRun, study_spec, write_study
from tests.unit.analysis.conftest import CHEAP, FULL, GOOD, MATCHED

pytestmark = pytest.mark.timeout(10)  # writes and reads real records: a fifth of a second, more where many processes share the disk

NUMBER, COUNT, TEXT, FLAG = (int, float, type(None)), (int, type(None)), (str,), (bool,)

# What the JSON document promises (docs/compare.md). A change here is a change of JSON_VERSION, unless it only adds.
DOCUMENT = ["format", "version", "metric", "objectives", "studies", "runs", "settings", "references", "notes"]
RUN = {
    **dict.fromkeys(["study", "run", "setting", "role", "label", "policy", "status", "reason"], TEXT),
    **dict.fromkeys(["trial", "seed", "steps", "planned_steps", "val_last_step", "val_best_step", "updates", "pareto_rank"], COUNT),
    **dict.fromkeys(
        ["val_last", "val_at_budget", "val_best", "test_last", "zero_shot_last", "mean_active", "mean_active_fraction"], NUMBER
    ),
    **dict.fromkeys(["final_active_fraction", "train_s", "wall_s", "worker_s", "flops"], NUMBER),
    **dict.fromkeys(["comm_bytes", "peak_memory_bytes"], COUNT),
    **dict.fromkeys(["mean_optimizer_bytes", "mean_peak_memory_bytes"], NUMBER),
    **dict.fromkeys(["delta_val", "delta_test", "flops_ratio", "train_s_ratio"], NUMBER),
    **dict.fromkeys(["comm_bytes_ratio", "mean_optimizer_bytes_ratio", "mean_peak_memory_bytes_ratio"], NUMBER),
    **dict.fromkeys(["partial", "on_front"], FLAG),
    "params": (dict,),
}
MEASURES = [
    *(
        "val_last",
        "val_at_budget",
        "val_best",
        "test_last",
        "zero_shot_last",
        "mean_active",
        "mean_active_fraction",
        "final_active_fraction",
    ),
    *("train_s", "wall_s", "worker_s", "flops", "delta_val", "delta_test", "flops_ratio", "train_s_ratio"),
    *("comm_bytes", "mean_optimizer_bytes", "peak_memory_bytes", "mean_peak_memory_bytes"),
    *("comm_bytes_ratio", "mean_optimizer_bytes_ratio", "mean_peak_memory_bytes_ratio"),
]
SETTING = {
    **dict.fromkeys(["study", "setting", "role", "label", "policy"], TEXT),
    **dict.fromkeys(["trial", "runs", "completed", "pareto_rank"], COUNT),
    **dict.fromkeys(["seeds", "objective_means"], (list,)),
    **{f"{name}_{kind}": NUMBER for name in MEASURES for kind in ("mean", "sd")},
    "params": (dict,),
    "on_front": FLAG,
}


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_the_json_document_keeps_its_keys_and_types(study: Path) -> None:
    document = json.loads(as_json(compare([study])), parse_constant=_refuse)
    assert list(document) == DOCUMENT
    assert (document["format"], document["version"], document["metric"]) == ("fat_ray.compare", 1, "f1")
    assert document["objectives"][1] == {"metric": "mean_active", "direction": "minimize"}
    assert document["studies"][0] == {
        "study": "crack-quick",
        "directory": str(study),
        "created_at": "2026-03-14T09:26:00+00:00",
        "seeds": [0],
    }
    for entries, promised in ((document["runs"], RUN), (document["settings"], SETTING)):
        assert len(entries) == 7
        for entry in entries:
            assert set(entry) == set(promised)
            for key, value in entry.items():
                assert type(value) in promised[key], (key, value)
    assert document["references"][0]["label"] == "constant prediction"
    assert set(document["references"][0]) == {"label", "study", "val", "test", "zero_shot"}
    good = next(run for run in document["runs"] if run["run"] == "t0000-s0")
    assert good["params"] == {"freeze.threshold": -0.5, "fisher.every": 2, "freeze.every": 4}


def test_every_key_is_documented() -> None:
    described = set(re.findall(r"`([a-z_]+)`", (Path(__file__).parents[3] / "docs" / "compare.md").read_text()))
    assert {*DOCUMENT, *RUN, *MEASURES, "runs", "completed", "seeds", "objective_means"} <= described


def test_nan_becomes_null(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", [FakeRun("t0000-s0", trial=0, f1=float("nan"))], spec=study_spec(steps=8))
    document = json.loads(as_json(compare([study])), parse_constant=_refuse)
    assert document["runs"][0]["val_last"] is None
    assert document["settings"][0]["objective_means"][0] is None


def test_csv_has_the_runs_their_settings_and_the_reference(study: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(compare([study])))))
    assert len(lines) == 8
    assert {key for key in lines[0] if key not in RUN} == {"params.freeze.threshold", "params.fisher.every", "params.freeze.every"}
    good = next(line for line in lines if line["run"] == "t0000-s0")
    assert (float(good["val_last"]), good["params.freeze.threshold"], good["status"]) == (pytest.approx(0.58), "-0.5", "completed")
    assert (lines[-1]["role"], lines[-1]["label"], float(lines[-1]["val_last"])) == (
        "reference",
        "constant prediction",
        pytest.approx(0.03),
    )


def _printed(study: Path, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(as_table(compare([study]), console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 240])
def test_the_table_fits_the_terminal_and_cuts_no_cell(study: Path, width: int) -> None:
    printed = _printed(study, width)
    assert all(cell_len(line.rstrip()) <= width for line in printed.splitlines())
    assert "…" not in printed
    assert "0.580" in printed
    assert ("Not shown at this width" in printed) == (width < 240)


def test_the_table_marks_what_is_partial_and_what_leads(study: Path) -> None:
    lines = _printed(study, 120).splitlines()
    line = {
        name: next(line for line in lines if f" {name} " in line) for name in ("t0000-s0", "t0002-s0", "constant prediction", "t0004-s0")
    }
    assert "★ 1" in line["t0000-s0"]
    assert "†" not in line["t0000-s0"]
    assert "pruned @ 12" in line["t0002-s0"]
    assert "†" in line["t0002-s0"]
    assert "★" not in line["t0002-s0"]
    assert "running @ 11" in line["t0004-s0"]
    assert "0.030" in line["constant prediction"]
    assert any("†: partial; the run did not complete" in line for line in lines)


def test_several_seeds_add_a_table_of_settings(tmp_path: Path) -> None:
    runs = [replace(run, run=f"{run.run[:-1]}{seed}", seed=seed, f1=run.f1 + 0.02 * seed) for run in (FULL, GOOD, CHEAP) for seed in (0, 1)]
    study = write_study(tmp_path / "a", runs, spec=study_spec(steps=20, seeds=[0, 1]))
    printed = _printed(study, 120)
    assert "mean ± sample standard deviation over completed seeds" in printed
    assert "0.590 ± 0.014" in printed
    assert "n = 2" in printed


def test_markup_in_names_is_printed_as_it_is(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", [replace(MATCHED, run="[red]x-s0")], spec=study_spec(steps=8))
    assert "[red]x-s0" in _printed(study, 200)


def test_a_study_without_runs_prints(tmp_path: Path) -> None:
    assert "rank" in _printed(write_study(tmp_path / "a", []), 100)
