"""The command line. Each command reads its options and calls other rooms, which are imported when the command runs: `--help` stays quick.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 the study or a run failed, 2 bad input, 130 or 143
after Ctrl-C or SIGTERM.
"""

import contextlib
import functools
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fat_ray import __version__, comparing, replaying
from fat_ray.errors import FatRayError, InputError, RunFailedError
from fat_ray.records.redact import scrub

if TYPE_CHECKING:
    from fat_ray.events import RunEnd
    from fat_ray.spec.load import LoadedStudy
    from fat_ray.study.launch import StudyOutcome

app = typer.Typer(
    help="Distributed hyperparameter studies for Fisher-guided progressive freezing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class WandbMode(StrEnum):
    """What `wandb.mode` may be."""

    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


def _holding_a_study(given: Path | list[Path]) -> Path | list[Path]:
    for directory in given if isinstance(given, list) else [given]:
        if not (directory / "study.json").is_file():
            raise typer.BadParameter(f"{directory} holds no study (no study.json): give the directory that fat-ray launch printed")
    return given


def _holding_studies(given: str | list[str]) -> str | list[str]:
    for place in given if isinstance(given, list) else [given]:
        if "://" not in place and not (Path(place, "study.json").is_file() or Path(place).parent.joinpath("study.json").is_file()):
            raise typer.BadParameter(f"{place} holds no study (no study.json): give the directory that fat-ray launch printed")
    return given


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.", show_default=False)]
StudyDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a study.", show_default=False, callback=_holding_a_study)]
StudyPlace = Annotated[
    str, typer.Argument(metavar="DIR|URI", help="Directory of a study, or its URI.", show_default=False, callback=_holding_studies)
]
StudyPlaces = Annotated[
    list[str],
    typer.Argument(
        metavar="DIR|DIR/RUN|URI...", help="Studies or single runs, by directory or URI.", show_default=False, callback=_holding_studies
    ),
]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set a field of the study file, such as train.steps=40; repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Directory that gets the study's own; default: output of the file.")]
Wandb = Annotated[WandbMode | None, typer.Option("--wandb", help="Mode of Weights & Biases; default: wandb.mode of the file.")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="ADDR", help="Ray cluster to use; default: RAY_ADDRESS, or a Ray of its own on loopback.")
]
JsonLines = Annotated[bool, typer.Option("--json", help="Tell on stdout what happens, one JSON object per line, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@dataclass
class _Session:
    """What the error boundary must know of the command that runs."""

    debug: bool = False
    directory: Path | None = None


_SESSION = _Session()


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if wanted:
        _print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    *,
    _version: Annotated[bool, typer.Option("--version", help="Show the version and stop.", callback=_show_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    _SESSION.debug, _SESSION.directory = debug, None


def _command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command that never shows a traceback, with an example at the end of its help."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            with _boundary():
                function(*args, **kwargs)

        return app.command(epilog=f"\b\nExample:\n  {example}")(guarded)

    return register


@contextlib.contextmanager
def _boundary() -> Iterator[None]:
    """Turns whatever a command raises into one message on stderr and an exit code."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except KeyboardInterrupt as stopped:
        _stop(f"stopped{_how_to_go_on()}", getattr(stopped, "exit_code", 130))
    except FatRayError as error:
        if _SESSION.debug:
            _show_traceback()
        _stop(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the boundary: nothing may reach the user as a traceback
        log = None if _SESSION.debug else _write_log()
        if log is None:
            _show_traceback()
        where = f"; the traceback lies in {log}" if log else ""
        _stop(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}{where}", 1)


def _how_to_go_on() -> str:
    """What to say of a study that was interrupted, if something of it is there."""
    directory = _SESSION.directory
    return f"; go on with: fat-ray resume {shlex.quote(str(directory))}" if directory and (directory / "study.json").exists() else ""


def _stop(message: str, exit_code: int) -> None:
    typer.echo(f"fat-ray: {scrub(message)}", err=True)
    raise typer.Exit(exit_code)


def _print(text: object) -> None:
    with _writing_stdout():
        typer.echo(text)


def _note(notes: Iterable[str]) -> None:
    for note in notes:
        typer.echo(f"note: {scrub(note)}", err=True)


@contextlib.contextmanager
def _writing_stdout() -> Iterator[None]:
    """Within, a stdout that takes no more, such as a file on a full disk, ends the command with one message: it is no defect."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):  # else Python tries again on its way out, and says so
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _stop(f"cannot write to stdout: {error.strerror or error}", 1)


def _show_traceback() -> None:
    typer.echo(scrub(traceback.format_exc()), err=True, nl=False)


def _write_log() -> Path | None:
    """The current exception's traceback in a file of the study, or of the temporary directory where there is no study yet."""
    logs = _SESSION.directory / "logs" if _SESSION.directory else None
    with (
        contextlib.suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", prefix="fat-ray-", suffix=".log", dir=logs if logs and logs.is_dir() else None, delete=False, encoding="utf-8"
        ) as file,
    ):
        file.write(scrub(traceback.format_exc()))
        return Path(file.name)
    return None


def _load(study: Path, settings: list[str], **options: object) -> "LoadedStudy":
    """The study file with `--set` and the options that are short for it."""
    from fat_ray.spec.load import load_study

    shorthands = [f"{field}={value}" for field, value in options.items() if value is not None]
    return load_study(study, [*settings, *shorthands])


@_command("fat-ray launch studies/quickstart.yaml --set train.steps=40 --trials 8 --out results")
def launch(
    study: StudyFile,
    *,
    set_: Settings = [],  # noqa: B006 - typer copies defaults
    out: Out = None,
    address: Address = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Trials of the search; default: budget.trials.")] = None,
    wandb: Wandb = None,
    quiet: Quiet = False,
    json: JsonLines = False,
) -> None:
    """Run a study: the search and its baselines, then compare all runs and write the report."""
    loaded = _load(study, set_, **{"budget.trials": trials, "wandb.mode": wandb})
    if trials is not None and not loaded.spec.search:
        raise InputError(
            f"--trials {trials}: {study} searches nothing, so its base setting is run once; give search, or leave --trials out"
        )
    from fat_ray.study.launch import launch as launch_study
    from fat_ray.view.document import line_writer

    directory = (out or Path(loaded.spec.output)) / loaded.spec.name
    _SESSION.directory = directory
    outcome = launch_study(
        loaded.spec,
        text=loaded.text,
        directory=directory,
        address=address,
        quiet=quiet,
        on_event=line_writer(sys.stdout) if json else None,
        command=tuple(sys.argv[1:]),
    )
    _show_outcome(outcome, directory, quiet=quiet, json=json)


def _show_outcome(outcome: "StudyOutcome", directory: Path, *, quiet: bool, json: bool) -> None:
    """The comparison, what the user should know, and the exit code."""
    if outcome.runs:
        _conclude(directory, shown=not json)
    _take_leave(outcome, directory, quiet=quiet)


def _take_leave(outcome: "StudyOutcome", directory: Path, *, quiet: bool) -> None:
    """The last words after a study, and its exit code. Unless it was quiet, the console has shown the notes already."""
    from fat_ray.study.ledger import Close

    for note in outcome.notes if quiet else ():
        typer.echo(f"warning: {note}", err=True)
    for ended in outcome.runs:
        if ended.status in ("failed", "diverged"):
            typer.echo(f"{ended.run} {ended.status}: {ended.reason}", err=True)
    if outcome.stopped_by is not None:
        _stop(f"stopped on request{_how_to_go_on()}", 128 + outcome.stopped_by)
    if outcome.failure:
        _stop(outcome.failure, 1)
    if outcome.failed:
        _stop(f"{outcome.failed} of {len(outcome.runs)} runs failed; tracebacks lie in {directory / 'logs'}", 1)
    if outcome.closed is Close.OUT_OF_DISK:
        _stop(f"stopped for want of disk space: make some{_how_to_go_on()}", 1)


@_command("fat-ray run studies/quickstart.yaml --set freeze.policy=none --workers 2 --seed 1")
def run(
    study: StudyFile,
    *,
    set_: Settings = [],  # noqa: B006 - typer copies defaults
    out: Out = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="DDP processes; default: train.workers.")] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Train under Ray, or in processes of this machine.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the run; default: the first of seeds.")] = None,
    wandb: Wandb = None,
    quiet: Quiet = False,
) -> None:
    """Train the base settings of a study once, without a search."""
    loaded = _load(study, set_, **{"train.workers": workers, "wandb.mode": wandb})
    from fat_ray.study.single import run_once

    chosen = loaded.spec.seeds[0] if seed is None else seed
    directory = (out or Path(loaded.spec.output)) / f"{loaded.spec.name}-run-s{chosen}"
    train = functools.partial(run_once, loaded.spec, text=loaded.text, directory=directory, seed=chosen, ray=ray, quiet=quiet)
    _train_once(directory, lambda: train(command=sys.argv[1:]))


def _train_once(directory: Path, train: Callable[[], "RunEnd | None"]) -> None:
    """Trains a single run and shows how it ended, if there was something left to train."""
    _SESSION.directory = directory
    try:
        end = train()
    except RunFailedError as error:
        raise RunFailedError(f"{error}; tracebacks lie in {directory / 'logs'}") from error
    if end is None:
        typer.echo(f"the run in {directory} has ended already; there is nothing to do", err=True)
        return
    _conclude(directory)
    if end.status != "completed":
        _stop(f"the run ended as {end.status}: {end.reason}", 1)


@_command("fat-ray resume out/quickstart")
def resume(
    directory: StudyDirectory,
    *,
    address: Address = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Of a single run: DDP processes from now on; default: as before.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Of a single run: train under Ray, or in processes of this machine.")] = False,
    quiet: Quiet = False,
    json: JsonLines = False,
) -> None:
    """Go on with a study, or a run, that was interrupted or killed: what had not ended goes on from its newest checkpoint."""
    from fat_ray.records.manifest import read_manifest

    _SESSION.directory = directory
    is_run = read_manifest(directory).kind == "run"
    unfit = {"--address": is_run and address is not None, "--workers": not is_run and workers is not None, "--ray": not is_run and ray}
    for option in (option for option, given in unfit.items() if given):
        raise InputError(f"{option} is not for a {'single run' if is_run else 'study'}, which {directory} holds")
    if is_run:
        from fat_ray.study.single import resume_once

        _train_once(directory, lambda: resume_once(directory, workers=workers, ray=ray, quiet=quiet))
        return
    from fat_ray.study.launch import resume as resume_study
    from fat_ray.view.document import line_writer

    outcome = resume_study(directory, address=address, quiet=quiet, on_event=line_writer(sys.stdout) if json else None)
    if outcome is None:
        typer.echo(f"the study in {directory} is complete; there is nothing to do", err=True)
    else:
        _show_outcome(outcome, directory, quiet=quiet, json=json)


@_command("fat-ray export out/quickstart-run-s0 --out model.safetensors\n  fat-ray export out/quickstart/t0003-s0 --out best.safetensors")
def export(
    place: Annotated[Path, typer.Argument(metavar="DIR|DIR/RUN", help="Directory of a study, or a run in it.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The safetensors file to write.", show_default=False)],
) -> None:
    """Write the weights of a run's newest checkpoint, for the plain model."""
    from fat_ray.engine.export import export_model

    exported = export_model(place, out)
    _print(out)
    if exported.step < exported.steps:
        typer.echo(f"note: {exported.run} is at step {exported.step} of {exported.steps}", err=True)


def _conclude(directory: Path, *, shown: bool = True) -> None:
    """The end of a study or run: the report, and unless something else stands on stdout the comparison and where everything lies."""
    from fat_ray.analysis.report import write_report

    report_path = write_report(directory)
    if not shown:
        return
    text, damage = comparing.comparison_text([directory])
    _print(text)
    _note(damage)
    _print(f"\nstudy    {directory}\nrecords  {directory / 'records'}\nreport   {report_path}")
    for parent in sorted({str(path.parent) for path in directory.glob("wandb/**/offline-run-*/")}):
        _print(f"W&B      wandb sync {shlex.quote(parent)}/offline-run-*")


@_command(
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
        _print(replaying.check_text([Path(place) for place in places], format_))
        return
    from fat_ray.analysis.compare import Options

    conditions = [*where, *([f"status in [{', '.join(status_)}]"] if status_ else [])]
    options = Options(metric=metric, baseline=baseline, margin=margin, where=conditions, sort=sort)
    text, damage = comparing.comparison_text(places, format_, options, rows, limit, search=search)
    _print(text)
    _note(damage)


@_command("fat-ray compact out/quickstart")
def compact(directory: StudyDirectory) -> None:
    """Gather the many small files of a study's records in few large ones."""
    from fat_ray.records.compact import compact as gather

    _SESSION.directory = directory
    done = gather(directory, say=lambda number, total: typer.echo(f"{number} of {total} runs", err=True))
    _print(done)
    _note(f"{run_} stays as it is: {reason}" for run_, reason in done.kept.items())


@_command("fat-ray replay out/quickstart --set freeze.threshold=-1:0:0.1 --set freeze.every=[4,8] --sort mean_active")
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
    _print(replaying.replay_text(place, run_, values, format_, sort, limit))


@_command("fat-ray rerun out/quickstart t0003-s0")
def rerun(
    directory: StudyDirectory, run_: replaying.Recorded, *, out: replaying.RerunOut = None, json: AsJson = False, quiet: Quiet = False
) -> None:
    """Train a recorded run again on this machine, and say whether it came out equal to the bit, or what differs."""
    from fat_ray.study.rerun import as_json, as_text
    from fat_ray.study.rerun import rerun as repeat

    found = repeat(directory, run_, out, quiet=quiet, command=sys.argv[1:])
    _print(as_json(found) if json else as_text(found))
    if not found.is_equal:
        raise typer.Exit(1)


@_command("fat-ray report out/quickstart")
def report(place: StudyPlace) -> None:
    """Write the HTML report of a study, and print its path."""
    from fat_ray.analysis.report import write_report

    _print(write_report(place))


@_command("fat-ray status out/quickstart --watch")
def status(
    place: StudyPlace,
    *,
    json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every few seconds until the study is over.")] = False,
) -> None:
    """Show how a study stands: while it runs, here or elsewhere, and after it."""
    from fat_ray.analysis.status import as_json, read_status

    if json:
        _print(as_json(read_status(place), place))
        return
    from fat_ray.analysis.follow import follow, show

    with _writing_stdout():
        follow(place) if watch else show(place)


@_command("fat-ray doctor --out results")
def doctor(
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory in which studies would be written.")] = Path("out"),
    json: AsJson = False,
) -> None:
    """Check whether this machine can run studies, and say how to mend what it cannot."""
    from fat_ray.study.doctor import as_json, as_text, examine

    checks = examine(out)
    _print(as_json(checks) if json else as_text(checks))
    if any(check.verdict == "fail" for check in checks):
        raise typer.Exit(1)


@_command("fat-ray schema > study.schema.json")
def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    from json import dumps

    from fat_ray.spec.load import study_schema

    _print(dumps(study_schema(), indent=2))
