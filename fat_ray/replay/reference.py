"""Which run of a study tells how drift goes without freezing."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc

from fat_ray.errors import InputError
from fat_ray.records.manifest import MANIFEST
from fat_ray.records.reader import parts, read_table, run_start, runs
from fat_ray.replay.recording import Recording, read_recording

_ORDER = ("baseline", "single", "search")
_UNFROZEN = ("none", "fisher_drift")
"""Policies that, as long as they freeze nothing, train as full fine-tuning does."""


def locate(place: Path, run: str | None = None) -> tuple[Path, str | None]:
    """The study's directory, and the run that is meant, if one is.

    Args:
        place: A study's directory, or ``<directory>/<run>``.
        run: The run, where it is named apart.

    Raises:
        InputError: There is no study, or no such run.
    """
    if not (place / MANIFEST).is_file():
        if run is not None or not (place.parent / MANIFEST).is_file():
            raise InputError(f"{place} is neither a study's directory, which holds {MANIFEST}, nor DIR/RUN with a run of one")
        place, run = place.parent, place.name
    known = runs(place)
    if run is not None and run not in known:
        raise InputError(f"{place} has no records of a run {run}; it has {', '.join(known) or 'none'}")
    return place, run


def reference(directory: Path, run: str | None = None) -> Recording:
    """The recording that a replay starts from: of the run that is named, else of the first that froze nothing.

    Raises:
        InputError: The run recorded no drift, or there is none that froze nothing.
        RecordError: Records cannot be read.
    """
    if run is not None:
        return read_recording(directory, run)
    found = next(references(directory), None)
    if found is None:
        raise InputError(
            f"{directory} has no run that recorded drift and froze nothing: add a baseline such as"
            " {name: observed, policy: none, set: {fisher.record: always}}, or name a run with --run, which is replayed as far as it goes"
        )
    return found


def references(directory: Path) -> Iterator[Recording]:
    """Recordings of runs that recorded drift and froze nothing: baselines before others, and longer ones before shorter ones.

    Raises:
        RecordError: Records cannot be read.
    """
    candidates = []
    for run in runs(directory):
        if parts(directory, "drift", run) and not _froze(directory, run):
            start = run_start(directory, run)
            if start.spec["freeze"]["policy"] in _UNFROZEN and read_table(directory, "steps", run).num_rows:
                candidates.append((_ORDER.index(start.role), -read_table(directory, "steps", run).num_rows, run))
    for _, _, run in sorted(candidates):
        recording = read_recording(directory, run)
        if not recording.freezes:
            yield recording


def _froze(directory: Path, run: str) -> bool:
    """Whether the run froze anything after its first step, at which groups without Fisher may go."""
    return bool(pc.any(pc.greater(read_table(directory, "freezes", run)["step"], 0)).as_py())
