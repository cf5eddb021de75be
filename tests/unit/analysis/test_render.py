import csv
import io
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from fat_ray.analysis.compare import Options, compare
from fat_ray.analysis.conclusions import conclusions
from fat_ray.analysis.insight import Importance, SearchInsight
from fat_ray.analysis.interaction import Interaction
from fat_ray.analysis.markup import as_latex, as_markdown
from fat_ray.analysis.render import as_csv, as_document, as_json, as_table, as_terminal
from fat_ray.analysis.table import Rows
from tests.support.studies import FakeRun, study_spec, write_study
from tests.unit.analysis.conftest import CHEAP, FULL, GOOD, MATCHED

pytestmark = pytest.mark.timeout(10)  # writes and reads real records: a fifth of a second, more where many processes share the disk

NUMBER, COUNT, TEXT, FLAG = (int, float, type(None)), (int, type(None)), (str,), (bool,)

# What the JSON document promises (docs/compare.md). A change here is a change of JSON_VERSION, unless it only adds.
DOCUMENT = [
    *("format", "version", "metric", "objectives", "studies", "runs", "settings", "references", "notes"),
    *("statistics", "conclusions", "search", "damage"),
]
STATISTICS = ["metric", "direction", "baseline", "margin", "confidence", "resamples", "alpha", "tests"]
RUN = {
    **dict.fromkeys(["study", "run", "setting", "role", "label", "policy", "status", "reason"], TEXT),
    **dict.fromkeys(["trial", "seed", "steps", "planned_steps", "val_last_step", "val_best_step", "updates", "pareto_rank"], COUNT),
    **dict.fromkeys(
        ["val_last", "val_at_budget", "val_best", "test_last", "zero_shot_last", "mean_active", "mean_active_fraction"], NUMBER
    ),
    **dict.fromkeys(["final_active_fraction", "train_s", "wall_s", "worker_s", "flops"], NUMBER),
    **dict.fromkeys(["comm_bytes", "peak_memory_bytes"], COUNT),
    **dict.fromkeys(["mean_optimizer_bytes", "mean_peak_memory_bytes"], NUMBER),
    **dict.fromkeys(["value", "difference", "delta_val", "delta_test", "flops_ratio", "train_s_ratio"], NUMBER),
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
    **dict.fromkeys(["n", "pairs"], COUNT),
    **{f"{name}_{kind}": NUMBER for name in ("value", "difference") for kind in ("mean", "low", "high")},
    **dict.fromkeys(["effect", "p", "p_holm", "p_attainable", "p_not_worse", "p_equivalence"], NUMBER),
    **dict.fromkeys(["verdict", "equivalence"], (str, type(None))),
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
    assert list(document["statistics"]) == STATISTICS
    assert document["references"][0]["label"] == "constant prediction"
    assert set(document["references"][0]) == {"label", "study", "val", "test", "zero_shot"}
    good = next(run for run in document["runs"] if run["run"] == "t0000-s0")
    assert good["params"] == {"freeze.threshold": -0.5, "fisher.every": 2, "freeze.every": 4}


def test_every_key_is_documented() -> None:
    described = set(re.findall(r"`([a-z_]+)`", (Path(__file__).parents[3] / "docs" / "compare.md").read_text()))
    keys = {key for key in SETTING if not key.endswith(("_mean", "_sd")) or key in ("value_mean", "difference_mean")}
    assert {*DOCUMENT, *STATISTICS, *RUN, *MEASURES, *keys} <= described
    assert {field.name for kind in (SearchInsight, Importance, Interaction) for field in fields(kind)} <= described


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


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full fine-tuning and two settings, six seeds each."""
    runs = [
        replace(run, run=f"{run.run[:-1]}{seed}", seed=seed, f1=run.f1 + 0.01 * (seed * 7 % 5))
        for run in (FULL, GOOD, CHEAP)
        for seed in range(6)
    ]
    spec = study_spec(steps=20, seeds=list(range(6)), freeze={"warmup_steps": 4})
    return write_study(tmp_path_factory.mktemp("seeds") / "a", runs, spec=spec)


def test_what_seeds_say_fits_a_hundred_columns(seeds: Path) -> None:
    comparison = compare([seeds], Options(margin=0.05))
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(as_table(comparison, console, Rows.SETTINGS))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(cell_len(line.rstrip()) <= 100 for line in lines)
    heading = next(at for at, line in enumerate(lines) if line.startswith("Over seeds: val F1, mean and difference to none by seed"))
    good = next(line for line in lines[heading:] if "trial 0" in line)
    assert re.match(r" trial 0 +6  0\.597  \[0\.58\d, 0\.61\d\]  −0\.020  \[−0\.020, −0\.020\]  0\.062  too few seeds  within", good)
    text = " ".join(" ".join(lines).split())
    assert "cannot give p below 2/2^6 = 0.031, 0.062 after Holm's correction over 2 settings; 7 seeds could show" in text


def test_a_margin_is_answered_with_its_price(seeds: Path) -> None:
    said = conclusions(compare([seeds], Options(margin=0.1)))
    assert any(
        re.fullmatch(
            r"trial 0 is within 0\.1 val F1 of full fine-tuning at \d+\s% less compute \(FLOPs\)"
            r" \(difference −0\.020, 95 % interval −0\.020 to −0\.020, n = 6, p = 0\.031\)\.",
            sentence,
        )
        for sentence in said
    )
    assert "No setting was shown to be within 0.001 val F1 of full fine-tuning." in conclusions(compare([seeds], Options(margin=0.001)))


def test_long_tables_are_cut_and_say_so(seeds: Path) -> None:
    printed = as_terminal(compare([seeds], Options(intervals=2)), Rows.RUNS, 2)
    assert "and 16 more rows (--limit 0 shows all)" in printed
    assert re.findall(r"\w+-s\d", printed) == ["none-s0", "none-s1"]
    settings = compare([seeds], Options(intervals=2)).settings
    assert settings["value_low"].null_count() == 1


def test_csv_of_settings(seeds: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(compare([seeds]), Rows.SETTINGS))))
    assert [line["setting"] for line in lines] == ["none", "trial 0", "trial 1"]
    assert json.loads(lines[0]["seeds"]) == [0, 1, 2, 3, 4, 5]
    assert lines[1]["params.freeze.threshold"] == "-0.5"
    assert float(lines[1]["difference_mean"]) == pytest.approx(-0.02)


def test_markdown_has_a_row_per_run_and_no_cell_breaks_it(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", [FULL, replace(MATCHED, run="a|b*c-s0")], spec=study_spec(steps=8))
    text = as_markdown(compare([study]))
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert len({len(cells) for cells in table}) == 1
    assert [cell.strip() for cell in table[0]][:2] == ["rank", "run"]
    assert r"a\|b\*c-s0" in text
    assert "## Runs" in text


def test_latex_is_a_table_in_which_nothing_is_special(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", [FULL, replace(MATCHED, run="a_b&50%$#-s0")], spec=study_spec(steps=8))
    text = as_latex(compare([study]))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"a\_b\&50\%\$\#-s0" in body
    assert body.isascii()
    assert body.count(r"\begin{table}") == body.count(r"\end{table}") == 1
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", body).group(1))
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}


INSIGHT = SearchInsight(
    study="a",
    trials=40,
    front=3,
    hypervolume=0.625,
    ideal=[0.6, 1000.0],
    reference=[0.38, 5400.0],
    best_share=0.125,
    importances=[
        Importance("val/f1", {"freeze.threshold": 0.75, "freeze.every": 0.25}),
        Importance("mean_active", {"freeze.threshold": 1.0}),
    ],
    interactions={"val/f1": [Interaction(("freeze.every", "freeze.threshold"), 0.31, 0.0004, 0.0004, 40)]},
)


def test_what_a_search_says_is_shown_in_every_format(seeds: Path) -> None:
    comparison = compare([seeds])
    printed = " ".join(as_terminal(comparison, Rows.SETTINGS, None, [INSIGHT]).split())
    assert "Which settings decide whether a trial is among the best 12 % (PED-ANOVA, 40 trials)" in printed
    assert "threshold 75 % 100 %" in printed
    assert "every × threshold val/f1 31 % <0.001 <0.001 40" in printed
    box = "dominates 62.5 % of the box between val/f1 0.6 and mean_active 1000 (the best values)"
    assert box in printed
    assert "the reference point val/f1 0.38 and mean_active 5400" in printed
    assert "| threshold | 75 % | 100 % |" in as_markdown(comparison, Rows.SETTINGS, None, [INSIGHT]).replace("\N{NO-BREAK SPACE}", " ")
    assert r"every $\times$ threshold" in as_latex(comparison, Rows.SETTINGS, None, [INSIGHT])
    assert as_document(comparison, [INSIGHT])["search"][0]["interactions"]["val/f1"][0]["share"] == 0.31


def test_markup_in_names_is_printed_as_it_is(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", [replace(MATCHED, run="[red]x-s0")], spec=study_spec(steps=8))
    assert "[red]x-s0" in _printed(study, 200)


def test_a_study_without_runs_prints(tmp_path: Path) -> None:
    assert "rank" in _printed(write_study(tmp_path / "a", []), 100)
