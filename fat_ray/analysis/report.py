"""One self-contained HTML page about a study: words, table, charts, and how to do it again. Opens without a network."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fat_ray.analysis import series, theme, words
from fat_ray.analysis.compare import Comparison, compare_studies
from fat_ray.analysis.figures import SECTIONS, Figure, Subject, figures
from fat_ray.analysis.insight import SearchInsight, sentences
from fat_ray.analysis.marks import Chart
from fat_ray.analysis.read import open_studies, tolerantly
from fat_ray.analysis.render import explanations
from fat_ray.analysis.table import run_table, seed_table, seed_title, setting_table
from fat_ray.errors import InputError
from fat_ray.view import text

REPORT = "report.html"
Insights = Callable[[Comparison], Sequence[SearchInsight]]
"""What is asked what the searches say: `fat_ray.api.search_insights`, which needs Optuna."""


def write_report(directory: Path | str, *, run: str | None = None, insights: Insights | None = None) -> Path | str:
    """Writes `report.html` into a study's directory, in place of an older one, and returns its path or URI.

    Args:
        directory: The study or its URI, finished or still running.
        run: The run whose freeze schedule and drift are drawn; None: the first seed of the best compromise.
        insights: What tells which settings matter; None: nothing is said of that.

    Raises:
        RecordError: The directory holds no study, or records that cannot be read.
        InputError: There is no such run.
        OutputError: The page cannot be written.
    """
    studies = open_studies([directory])
    html = tolerantly(studies, lambda whole: render_report(compare_studies(whole), run=run, library=chart_library(), insights=insights))
    place = studies[0].place
    place.write(REPORT, html.encode())
    return place.local / REPORT if place.local else f"{place.name}/{REPORT}"


@cache
def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that needs nothing else."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    return script.replace("</script", "<\\/script")


def subject_of(comparison: Comparison, run: str | None, insights: Insights | None) -> Subject:
    """What the figures are about.

    Raises:
        InputError: There is no such run.
    """
    found = insights(comparison) if insights else []
    return Subject(comparison, _chosen(comparison, run), found[0] if found else None)


def render_report(comparison: Comparison, *, run: str | None, library: str, insights: Insights | None = None) -> str:
    """The page as text.

    Args:
        comparison: Of exactly one study.
        run: As in `write_report`.
        library: `chart_library()`.
        insights: As in `write_report`.
    """
    study, subject = comparison.studies[0], subject_of(comparison, run, insights)
    drawn = figures(subject)
    environment = Environment(loader=PackageLoader("fat_ray.analysis"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    template = environment.get_template("report.html")
    source = partial(_packaged, environment)
    return template.render(
        name=study.key,
        created_at=study.manifest.created_at,
        written_at=datetime.now(UTC),
        states=words.states(comparison),
        metric=text.metric_name(comparison.metric),
        searched=words.searched(study.spec),
        outcome=words.outcome(comparison),
        facts=words.facts(comparison),
        caveats=words.caveats(comparison),
        settings=setting_table(comparison) if comparison.several_seeds else None,
        seeds=seed_table(comparison) if comparison.several_seeds else None,
        seed_title=seed_title(comparison),
        runs=run_table(comparison),
        explanations=explanations(comparison),
        search_said=_search_said(subject),
        incomplete=[row for row in comparison.runs.iter_rows(named=True) if row["partial"]],
        reproduce=_commands(comparison),
        reruns=_reruns(comparison),
        study_text=study.text or json.dumps(study.spec, indent=2),
        environment=_environment(comparison),
        glossary=words.GLOSSARY,
        sections=SECTIONS,
        figures=drawn,
        charts=_charts(drawn),
        themes={name: theme.theme(palette) for name, palette in (("light", theme.LIGHT), ("dark", theme.DARK))},
        palettes={"light": asdict(theme.LIGHT), "dark": asdict(theme.DARK)},
        style=source("report.css"),
        script=source("report.js"),
        library=Markup(library),  # noqa: S704 - our own package data and vl-convert's bundle, never study data
    )


def _packaged(environment: Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])  # noqa: S704 - package data


def _chosen(comparison: Comparison, run: str | None) -> str | None:
    """The run whose schedule is drawn."""
    known = comparison.runs["run"].to_list()
    if run is not None and run not in known:
        raise InputError(f"run = {run!r}: the study has no such run; it has {text.listing(known) if known else 'none'}")
    best = comparison.best
    return run or (str(comparison.runs.filter(setting=best["setting"])["run"][0]) if best else None)


def _charts(drawn: dict[str, Figure]) -> dict[str, Chart]:
    return {name: figure.chart for name, figure in drawn.items() if figure.chart is not None}


def _search_said(subject: Subject) -> list[str]:
    """The size of the front, in words."""
    objectives = [objective.metric for objective in subject.comparison.objectives]
    return sentences([subject.insight], objectives)[:1] if subject.insight and subject.insight.hypervolume is not None else []


def _reruns(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Of each run its id, how to train it again, and its settings."""
    return [
        (row["run"], f"fat-ray rerun . {shlex.quote(row['run'])}", series.describe_params(row["params_json"]))
        for row in comparison.runs.iter_rows(named=True)
    ]


def _commands(comparison: Comparison) -> list[tuple[str, str]]:
    """What to type to do it again, each with what it does."""
    commands = [("The whole study", "fat-ray launch study.yaml --out again")]
    best = comparison.best
    if best:
        sets = [f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in json.loads(best["params_json"]).items()]
        commands.append((f"The best compromise ({best['setting']}) alone", " \\\n    ".join(["fat-ray run study.yaml", *sets])))
    return [*commands, ("The numbers of this page", "fat-ray compare . --format json")]


def _environment(comparison: Comparison) -> list[tuple[str, str]]:
    """The manifest, and what the runs recorded about where they ran; values that differ between runs stand side by side."""
    manifest = comparison.studies[0].manifest
    seen = {key: {_plain(value): None} for key, value in manifest.model_dump(mode="json", exclude={"spec", "name", "command"}).items()}
    seen["command"] = {shlex.join(manifest.command): None}
    for recorded in series.environments(comparison):
        for key, value in _flat(recorded):
            seen.setdefault(f"run.{key}", {})[_plain(value)] = None
    return [(key, " | ".join(values)) for key, values in seen.items()]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
