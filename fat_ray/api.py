"""Studies from Python and notebooks, by the code that the command line runs.

study = fat_ray.Study.from_yaml("studies/quickstart.yaml", ["budget.trials=4"])
study.launch()
study.runs().sort("val", descending=True)
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fat_ray.spec.load import LoadedStudy, load_study, study_of

if TYPE_CHECKING:
    import polars as pl

    from fat_ray.analysis.compare import Comparison
    from fat_ray.spec.study import StudySpec
    from fat_ray.study.launch import StudyOutcome


class Study:
    """A study and the directory in which its results lie or will lie.

    Args:
        fields: What a study file holds, as mappings, lists and plain values, such as ``name="mine", train={"steps": 50}``.

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

    def launch(self, out: str | os.PathLike[str] | None = None, *, address: str | None = None, quiet: bool = False) -> "StudyOutcome":
        """Runs the study and returns when it is over; the same as ``fat-ray launch``, without the report.

        Args:
            out: Directory in which the study's own directory is made; None: `spec.output`.
            address: ``host:port`` of a Ray cluster; None: a local one.
            quiet: Show no progress.

        Raises:
            InputError: Something given cannot be used; nothing was started.
        """
        from fat_ray.study.launch import launch

        self.directory = Path(out or self.spec.output) / self.spec.name
        return launch(self.spec, text=self._loaded.text, directory=self.directory, address=address, quiet=quiet)

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

    def compare(self) -> "Comparison":
        """Runs and settings side by side, also while the study runs.

        Raises:
            RecordError: The study was not launched yet, or its records cannot be read.
        """
        from fat_ray.analysis.compare import compare

        return compare([self.directory])

    def runs(self) -> "pl.DataFrame":
        """One row per run: setting, seed, how it ended, metrics, costs; the best first. Columns: `analysis.compare.RUN_COLUMNS`."""
        return self.compare().runs

    def report(self) -> Path:
        """Writes the report and returns where it is."""
        from fat_ray.analysis.report import write_report

        return write_report(self.directory)

    def __repr__(self) -> str:
        return f"Study({self.spec.name!r}, {str(self.directory)!r})"
