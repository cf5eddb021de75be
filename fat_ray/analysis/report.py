"""One self-contained HTML page about a study: words, table, charts, and how to do it again. Opens without a network."""

import json
import shlex
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fat_ray.analysis import plots, series, theme, words
from fat_ray.analysis.compare import Comparison, compare_studies
from fat_ray.analysis.read import open_studies, tolerantly
from fat_ray.analysis.render import explanations
from fat_ray.analysis.table import run_table, seed_table, seed_title, setting_table
from fat_ray.errors import InputError
from fat_ray.view import text

REPORT = "report.html"


def write_report(directory: Path | str, *, run: str | None = None) -> Path | str:
    """Writes `report.html` into a study's directory, in place of an older one, and returns its path or URI.

    Args:
        directory: The study or its URI, finished or still running.
        run: The run whose freeze schedule and drift are drawn; None: the first seed of the best compromise.

    Raises:
        RecordError: The directory holds no study, or records that cannot be read.
        InputError: There is no such run.
        OutputError: The page cannot be written.
    """
    studies = open_studies([directory])
    html = tolerantly(studies, lambda whole: render_report(compare_studies(whole), run=run, library=chart_library()))
    place = studies[0].place
    place.write(REPORT, html.encode())
    return place.local / REPORT if place.local else f"{place.name}/{REPORT}"


@cache
def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that needs nothing else."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)
    return script.replace("</script", "<\\/script")


def render_report(comparison: Comparison, *, run: str | None, library: str) -> str:
    """The page as text.

    Args:
        comparison: Of exactly one study.
        run: As in `write_report`.
        library: `chart_library()`.
    """
    study = comparison.studies[0]
    chosen = _chosen(comparison, run)
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
        chosen=chosen,
        incomplete=[row for row in comparison.runs.iter_rows(named=True) if row["partial"]],
        reproduce=_commands(comparison),
        study_text=study.text or json.dumps(study.spec, indent=2),
        environment=_environment(comparison),
        glossary=words.GLOSSARY,
        kinds={"settings": _present(comparison, completed_only=True), "runs": _present(comparison, completed_only=False)},
        roles={**plots.ROLES, "active": "active", "frozen": "frozen"},
        charts=plots.charts(comparison, chosen),
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


def _present(comparison: Comparison, *, completed_only: bool) -> list[str]:
    """The classes of runs that a legend has to show, in their order."""
    present = set(series.kinds(comparison).values()) - ({series.INCOMPLETE} if completed_only else set())
    return [kind for kind in series.KINDS if kind in present]


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
