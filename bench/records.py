"""Records at scale: `python -m bench.records [--runs N] [--json]`. See bench/README.md."""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl

from bench.synthetic import Row, Size, write_study
from bench.tables import markdown
from fat_ray.analysis.read import open_studies, scan
from fat_ray.records.compact import compact


def run_command(arguments: list[str]) -> tuple[float, float, float]:
    """Wall-clock and CPU seconds, and the most memory in MiB, of one process on two cores."""
    began = time.perf_counter()
    out = os.open(os.devnull, os.O_WRONLY)
    pid = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, out, 1)])
    _, status, usage = os.wait4(pid, 0)
    os.close(out)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed with {status}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def compare_rows(directory: Path, repeats: int, state: str) -> Iterator[Row]:
    """`fat-ray compare` as a person would call it, in a process of its own."""
    for options in ([], ["--format", "json"]):
        found = [run_command(["-m", "fat_ray", "compare", str(directory), *options]) for _ in range(repeats)]
        wall, cpu, memory = (statistics.median(values) for values in zip(*found, strict=True))
        yield {"question": " ".join(["compare", *options]), "records": state, "wall_s": wall, "cpu_s": cpu, "peak_mib": memory}


Question = Callable[[], Any]


def questions(directory: Path, lines: Path, run: str) -> dict[str, tuple[Question, Question]]:
    """Each question asked of Parquet with polars, and of JSON lines with pandas."""
    studies = open_studies([directory])

    def frame(table: str) -> pl.LazyFrame:
        return scan(studies, table)

    def read(table: str) -> Any:
        return pd.read_json(lines / f"{table}.jsonl", lines=True)

    def last_polars() -> Any:
        final = frame("evals").filter((pl.col("split") == "val") & (pl.col("metric") == "f1")).group_by("run").agg(pl.col("value").last())
        return final.join(frame("runs").select("run", "trial"), on="run").group_by("trial").agg(pl.col("value").mean()).collect()

    def last_pandas() -> Any:
        found = read("evals")
        final = found[(found.split == "val") & (found.metric == "f1")].groupby("run").value.last().reset_index()
        return final.merge(read("runs")[["run", "trial"]]).groupby("trial").value.mean()

    def costs_polars() -> Any:
        return frame("steps").group_by("run").agg(pl.col("flops", "step_s").sum()).collect()

    def costs_pandas() -> Any:
        return read("steps").groupby("run")[["flops", "step_s"]].sum()

    def drift_polars() -> Any:
        kinds = frame("groups").filter(pl.col("run") == run).select("group", "kind")
        updates = frame("drift").filter((pl.col("run") == run) & pl.col("smoothed").is_not_null())
        return updates.join(kinds, on="group").group_by("update", "kind").agg(pl.col("smoothed").mean()).collect()

    def drift_pandas() -> Any:
        groups, updates = read("groups"), read("drift")
        chosen = updates[(updates.run == run) & updates.smoothed.notna()].merge(groups[groups.run == run][["group", "kind"]], on="group")
        return chosen.groupby(["update", "kind"]).smoothed.mean()

    return {
        "mean val F1 per setting": (last_polars, last_pandas),
        "FLOPs and seconds per run": (costs_polars, costs_pandas),
        "drift per layer kind of one run": (drift_polars, drift_pandas),
    }


def write_lines(directory: Path, lines: Path) -> None:
    """The tables that are asked about, as JSON lines."""
    lines.mkdir()
    studies = open_studies([directory])
    for table in ("runs", "groups", "evals", "steps", "drift"):
        scan(studies, table).sink_ndjson(lines / f"{table}.jsonl")


def question_rows(size: Size, repeats: int) -> Iterator[Row]:
    """The same questions of a smaller study, Parquet and JSON lines in turn."""
    with tempfile.TemporaryDirectory() as folder:
        directory, lines = Path(folder, "study"), Path(folder, "lines")
        write_study(directory, size)
        compact(directory)
        write_lines(directory, lines)
        for name, (parquet, text) in questions(directory, lines, "t0000-s0").items():
            seconds = [(measured(parquet), measured(text)) for _ in range(repeats)]
            fast, slow = (statistics.median(values) for values in zip(*seconds, strict=True))
            rows = size.runs * size.groups * size.updates
            yield {"question": name, "drift_rows": rows, "parquet_s": fast, "json_lines_s": slow, "ratio": slow / fast}


def measured(ask: Question) -> float:
    """Seconds of one answer."""
    began = time.perf_counter()
    assert len(ask())
    return time.perf_counter() - began


def study_rows(folder: Path, size: Size, repeats: int, *, loose: bool) -> Iterator[Row]:
    """The study is written, asked, compacted and asked again."""
    directory = folder / "study"
    if not directory.exists():
        began = time.perf_counter()
        written = write_study(directory, size)
        yield {"question": "write", "records": "loose", "wall_s": time.perf_counter() - began, "mib": written / 2**20}
    if loose:
        yield from compare_rows(directory, 1, "loose")
    began, used = time.perf_counter(), time.process_time()
    done = compact(directory)
    took = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
    yield {"question": "compact", "records": "compacted", **took, "mib": done.num_bytes[1] / 2**20, "files": done.num_files[1]}
    yield from compare_rows(directory, repeats, "compacted")


def told(rows: Iterator[Row]) -> list[Row]:
    """The rows, each shown on stderr when it is there: the whole takes long."""
    found = []
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.records", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--runs", type=int, default=10_000, help="runs of the study")
    parser.add_argument("--updates", type=int, default=100, help="drift updates of each run, of 200 groups")
    parser.add_argument("--repeats", type=int, default=5, help="times that each question is asked")
    parser.add_argument("--json-runs", type=int, default=50, help="runs of the study that is also written as JSON lines; 0: none")
    parser.add_argument("--folder", type=Path, default=None, help="keeps the study, or takes the one there; default: a temporary one")
    parser.add_argument("--no-loose", action="store_true", help="do not compare before the compaction")
    given = parser.parse_args()
    size = Size(given.runs, updates=given.updates)
    with tempfile.TemporaryDirectory() as folder:
        studies = told(study_rows(given.folder or Path(folder), size, given.repeats, loose=not given.no_loose))
    asked = told(question_rows(Size(given.json_runs, updates=given.updates), given.repeats)) if given.json_runs else []
    print(json.dumps([*studies, *asked], indent=2) if given.json else "\n\n".join(markdown(rows) for rows in (studies, asked) if rows))


if __name__ == "__main__":
    main()
