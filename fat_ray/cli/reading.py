"""The commands that read what was recorded, and those about this machine: their options, and what they print."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fat_ray.cli import comparing, plotting, replaying
from fat_ray.cli.app import SESSION, add_notes, command, say, writing_stdout
from fat_ray.cli.options import AsJson, Quiet, StudyDirectory, StudyPlace, StudyPlaces


@command(
    "fat-ray compare out/quickstart out/other --metric test/f1 --margin 0.005"
    '\n  fat-ray compare out/quickstart --where "freeze.threshold < 0" --sort test_last:desc --format latex > table.tex'
)
def compare(  # noqa: PLR0913 - an argument per option
    places: StudyPlaces,
    *,
    format_: comparing.FormatOption = comparing.Format.TABLE,
    metric: comparing.Metric = None,
    baseline: comparing.Baseline = "none",
    margin: comparing.Margin = None,
    where: comparing.Where = [],  # noqa: B006
    status_: comparing.Statuses = [],  # noqa: B006
    sort: comparing.Sort = None,
    rows: comparing.RowsOption = comparing.Rows.ALL,
    limit: comparing.Limit = None,
    search: comparing.Search = False,
    replay_: replaying.Check = False,
) -> None:
    """Compare runs and settings of studies: metrics, costs, and over seeds how sure a difference is."""
    if replay_:
        say(replaying.check_text([Path(place) for place in places], format_))
        return
    from fat_ray.analysis.compare import Options

    conditions = [*where, *([f"status in [{', '.join(status_)}]"] if status_ else [])]
    options = Options(metric=metric, baseline=baseline, margin=margin, where=conditions, sort=sort)
    text, damage = comparing.comparison_text(places, format_, options, rows, limit, search=search)
    say(text)
    add_notes(damage)


@command("fat-ray compact out/quickstart")
def compact(directory: StudyDirectory) -> None:
    """Gather the many small files of a study's records in few large ones."""
    from fat_ray.records.compact import compact as gather

    SESSION.directory = directory
    done = gather(directory, say=lambda number, total: typer.echo(f"{number} of {total} runs", err=True))
    say(done)
    add_notes(f"{run_} stays as it is: {reason}" for run_, reason in done.kept.items())


@command("fat-ray replay out/quickstart --set freeze.threshold=-1:0:0.1 --set freeze.every=[4,8] --sort mean_active")
def replay(
    place: replaying.Place,
    *,
    values: replaying.Values = [],  # noqa: B006
    run_: replaying.Run = None,
    format_: replaying.FormatOption = replaying.ReplayFormat.TABLE,
    sort: replaying.Sort = "mean_active",
    limit: replaying.Limit = 40,
) -> None:
    """Tell from the recorded drift of one run what other settings would have frozen, and when; nothing is trained."""
    say(replaying.replay_text(place, run_, values, format_, sort, limit))


@command("fat-ray rerun out/quickstart t0003-s0")
def rerun(
    directory: StudyDirectory, run_: replaying.Recorded, *, out: replaying.RerunOut = None, json: AsJson = False, quiet: Quiet = False
) -> None:
    """Train a recorded run again on this machine, and say whether it came out equal to the bit, or what differs."""
    from fat_ray.study.rerun import as_json, as_text
    from fat_ray.study.rerun import rerun as repeat

    found = repeat(directory, run_, out, quiet=quiet, command=sys.argv[1:])
    say(as_json(found) if json else as_text(found))
    if not found.is_equal:
        raise typer.Exit(1)


@command("fat-ray report out/quickstart")
def report(place: StudyPlace, *, run_: plotting.Run = None) -> None:
    """Write the HTML report of a study, and print its path."""
    from fat_ray.api import write_report

    say(write_report(place, run_))


@command(
    "fat-ray plot out/quickstart --figure tradeoff --out tradeoff.pdf --width 85mm"
    "\n  fat-ray plot out/quickstart --out figures --format svg"
)
def plot(  # noqa: PLR0913 - an argument per option
    place: StudyPlace,
    *,
    out: plotting.Out,
    figure: plotting.FigureName = None,
    width: plotting.Width = "85mm",
    height: plotting.Height = None,
    dpi: plotting.Dpi = 300,
    format_: plotting.FormatOption = None,
    title: plotting.Title = True,
    run_: plotting.Run = None,
) -> None:
    """Draw the figures of the report for papers, as PNG, SVG or PDF, and print where they are."""
    written, notes = plotting.write_figures(place, out, figure, plotting.Form(width, height, dpi, title=title), format_, run_)
    for path in written:
        say(path)
    add_notes(notes)


@command("fat-ray status out/quickstart --watch")
def status(
    place: StudyPlace,
    *,
    json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every few seconds until the study is over.")] = False,
) -> None:
    """Show how a study stands: while it runs, here or elsewhere, and after it."""
    from fat_ray.analysis.status import as_json, read_status

    if json:
        say(as_json(read_status(place), place))
        return
    from fat_ray.analysis.follow import follow, show

    with writing_stdout():
        follow(place) if watch else show(place)


@command("fat-ray doctor --out results")
def doctor(
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory in which studies would be written.")] = Path("out"),
    json: AsJson = False,
) -> None:
    """Check whether this machine can run studies, and say how to mend what it cannot."""
    from fat_ray.study.doctor import as_json, as_text, examine

    checks = examine(out)
    say(as_json(checks) if json else as_text(checks))
    if any(check.verdict == "fail" for check in checks):
        raise typer.Exit(1)


@command("fat-ray schema > study.schema.json")
def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    from json import dumps

    from fat_ray.spec.load import study_schema

    say(dumps(study_schema(), indent=2))
