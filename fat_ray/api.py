"""Studies from Python and notebooks, by the code that the command line runs.

study = fat_ray.Study.from_yaml("studies/quickstart.yaml", ["budget.trials=4"])
study.launch()
study.runs().sort("val_last", descending=True)
fat_ray.compare(["out/first", "out/second"], metric="test/f1", margin=0.005).settings
"""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fat_ray.records.manifest import MANIFEST
from fat_ray.spec.load import LoadedStudy, load_study, study_of

if TYPE_CHECKING:
    import polars as pl

    from fat_ray.analysis.compare import Comparison
    from fat_ray.analysis.insight import SearchInsight
    from fat_ray.analysis.read import Study as AnalysedStudy
    from fat_ray.spec.study import StudySpec
    from fat_ray.study.announce import OnEvent
    from fat_ray.study.launch import StudyOutcome
    from fat_ray.view.picture import Picture


class Study:
    """A study and the directory in which its results lie or will lie. In a notebook it shows how it stands.

    Args:
        fields: What a study file holds, as keyword arguments, such as ``name="mine", train={"steps": 50}``: mappings, lists and plain
            values; paths, tuples, enumerations and NumPy numbers are taken for what they mean.

    Raises:
        SpecError: With all problems at once.

    Attributes:
        directory: ``<output>/<name>``, or where `launch` was told to put it.
    """

    def __init__(self, **fields: Any) -> None:
        self._take(study_of(fields))

    def _take(self, loaded: LoadedStudy) -> None:
        self._loaded = loaded
        self.directory = Path(loaded.spec.output) / loaded.spec.name

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """A study file.

        Args:
            path: The file.
            overrides: Settings such as ``freeze.threshold=-0.5`` that replace those of the file.

        Raises:
            SpecError: With all problems at once.
        """
        study = cls.__new__(cls)
        study._take(load_study(Path(path), overrides))  # noqa: SLF001  its own
        return study

    @classmethod
    def from_directory(cls, directory: str | os.PathLike[str]) -> Self:
        """A study that was launched: to look at its runs, or to go on with it.

        Raises:
            RecordError: The directory holds no study.
        """
        from fat_ray.records.manifest import STUDY_TEXT, read_manifest, read_study

        place = Path(directory)
        study = cls.__new__(cls)
        study._take(LoadedStudy(read_study(read_manifest(place)), (place / STUDY_TEXT).read_text()))  # noqa: SLF001  its own
        study.directory = place
        return study

    @property
    def spec(self) -> "StudySpec":
        """All settings, resolved."""
        return self._loaded.spec

    def launch(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        address: str | None = None,
        quiet: bool = False,
        on_event: "OnEvent | None" = None,
    ) -> "StudyOutcome":
        """Runs the study and returns when it is over; the same as ``fat-ray launch``, without the report.

        A Ray that this process is connected to is used and left as it is; otherwise one of its own is started and ended.

        Args:
            out: Directory in which the study's own directory is made; None: `spec.output`.
            address: ``host:port`` of a Ray cluster; None: a local one.
            quiet: Show no progress.
            on_event: Called with each thing that happens, as ``fat-ray launch --json`` writes them (docs/console.md).

        Raises:
            InputError: Something given cannot be used; nothing was started.
        """
        from fat_ray.study.launch import launch

        self.directory = Path(out or self.spec.output) / self.spec.name
        return launch(self.spec, text=self._loaded.text, directory=self.directory, address=address, quiet=quiet, on_event=on_event)

    def status(self) -> "Picture":
        """How it stands now: while it runs, here or elsewhere, and after it; the same as ``fat-ray status``.

        Raises:
            RecordError: The study was not launched yet, or its records cannot be read.
        """
        from fat_ray.analysis.status import read_status

        return read_status(self.directory)

    def resume(self, *, address: str | None = None, quiet: bool = False) -> "StudyOutcome | None":
        """Goes on with the study, whose driver was interrupted or killed; the same as ``fat-ray resume``, without the report.

        Args:
            address: As for `launch`.
            quiet: As for `launch`.

        Returns:
            None when the study was complete already.

        Raises:
            InputError: Something cannot be used, or another process is at work in the directory; nothing was started.
            RecordError: There is no study.
        """
        from fat_ray.study.launch import resume

        return resume(self.directory, address=address, quiet=quiet)

    def compare(self, **options: Any) -> "Comparison":
        """Runs and settings side by side, also while the study runs.

        Args:
            options: Fields of `analysis.compare.Options`, such as ``metric="test/f1"``, ``baseline="none"``, ``margin=0.005``.

        Raises:
            RecordError: The study was not launched yet, or its records cannot be read.
            InputError: A field, the metric or the baseline does not exist.
        """
        return compare([self.directory], **options)

    def runs(self) -> "pl.DataFrame":
        """One row per run: setting, seed, how it ended, metrics, costs; the best first. Columns: `analysis.compare.RUN_COLUMNS`."""
        return self.compare(statistics=False).runs

    def trials(self) -> "pl.DataFrame":
        """One row per trial or baseline: means over its seeds and their deviations, and its rank; the best first."""
        return self.compare().settings

    def front(self) -> "pl.DataFrame":
        """The rows of `trials` on the Pareto front of the objectives."""
        import polars as pl

        return self.trials().filter(pl.col("on_front"))

    def best(self) -> dict[str, Any] | None:
        """The row of `trials` that is the best compromise between the objectives; None while no trial has completed."""
        return self.compare(statistics=False).best

    def report(self) -> Path:
        """Writes the report and returns where it is."""
        return Path(write_report(self.directory))

    def __repr__(self) -> str:
        return f"Study({self.spec.name!r}, {str(self.directory)!r})"

    def _repr_html_(self) -> str:
        """How it stands, for notebooks; before it was launched, what it will do."""
        from fat_ray.view.render import as_html

        if (self.directory / MANIFEST).is_file():
            return as_html(self.status())
        rows = {
            "study": f"{self.spec.name}, not launched yet",
            "task": self.spec.task.name,
            "search": ", ".join(self.spec.search) or "nothing",
            "objectives": ", ".join(f"{goal.direction} {goal.metric}" for goal in self.spec.objectives),
            "sampler": f"{self.spec.sampler.name}, {self.spec.budget.trials} trials, {len(self.spec.seeds)} seed(s)",
            "baselines": ", ".join(baseline.name for baseline in self.spec.references) or "none",
            "directory": str(self.directory),
        }
        return "<table>" + "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items()) + "</table>"


def compare(given: Sequence[str | os.PathLike[str]], **options: Any) -> "Comparison":
    """Runs and settings of several studies side by side; the same as ``fat-ray compare``.

    Args:
        given: Directories of studies, or URIs of them; or single runs, as ``DIR/RUN``.
        options: Fields of `analysis.compare.Options`, such as ``metric="test/f1"``, ``baseline="none"``, ``margin=0.005``.

    Raises:
        RecordError: There is no study, or it cannot be read at all.
        InputError: A run, a field, the metric or the baseline does not exist.
    """
    from fat_ray.analysis.compare import Options, compare

    return compare([os.fspath(one) for one in given], Options(**options))


def write_report(place: str | os.PathLike[str], run: str | None = None) -> Path | str:
    """Writes the report of a study, and returns where it is; the same as ``fat-ray report``.

    Args:
        place: Directory of the study, or its URI.
        run: The run whose freeze schedule and drift are drawn; None: the first seed of the best compromise.

    Raises:
        RecordError: There is no study, or it cannot be read at all.
        InputError: There is no such run.
        OutputError: The page cannot be written.
    """
    from fat_ray.analysis.report import write_report

    return write_report(os.fspath(place), run=run, insights=search_insights)


def search_insights(comparison: "Comparison") -> "list[SearchInsight]":
    """What the searches of a comparison say of their settings and fronts, one entry per study; docs/compare.md describes it."""
    import numpy as np

    ranked = comparison.settings.filter(comparison.settings["pareto_rank"].is_not_null())
    values = np.array(ranked["objective_means"].to_list(), dtype=float).reshape(-1, len(comparison.objectives))
    if not len(values):
        return [_insight(comparison, study, [], []) for study in comparison.studies]
    signs = np.array([-1.0 if objective.direction == "maximize" else 1.0 for objective in comparison.objectives])
    best, worst = (values * signs).min(axis=0), (values * signs).max(axis=0)
    span = np.where(worst > best, worst - best, 1.0)
    corners = [[float(number) for number in corner * signs] for corner in (best, worst + 0.1 * span)]
    return [_insight(comparison, study, *corners) for study in comparison.studies]


def _insight(comparison: "Comparison", study: "AnalysedStudy", ideal: list[float], reference: list[float]) -> "SearchInsight":
    from pydantic import TypeAdapter

    from fat_ray.analysis.insight import Importance, SearchInsight
    from fat_ray.analysis.interaction import interactions
    from fat_ray.rules import front_ranks
    from fat_ray.spec.space import Distribution
    from fat_ray.study.importance import best_share, dominated_share, importances

    rows = [row for row in comparison.settings.iter_rows(named=True) if row["study"] == study.key and row["pareto_rank"] is not None]
    values, directions = [row["objective_means"] for row in rows], [objective.direction for objective in comparison.objectives]
    searched = [(json.loads(row["params_json"]), row["objective_means"]) for row in rows if row["role"] == "search"]
    space = TypeAdapter(dict[str, Distribution]).validate_python(study.spec["search"])
    by_objective = {
        objective.metric: [(params, means[number]) for params, means in searched] for number, objective in enumerate(comparison.objectives)
    }
    return SearchInsight(
        study=study.key,
        trials=len(searched),
        front=front_ranks(values, directions).count(1),
        hypervolume=dominated_share(values, directions, ideal, reference) if rows else None,
        ideal=ideal,
        reference=reference,
        best_share=best_share(len(searched)) if searched else None,
        importances=[
            Importance(name, importances(space, trials, direction))
            for (name, trials), direction in zip(by_objective.items(), directions, strict=True)
        ],
        interactions={name: interactions(trials) for name, trials in by_objective.items()},
    )
