"""What a worker is told: one run with its seed, where its records go, and whom it follows."""

from typing import Literal

from fat_ray.spec.base import Strict
from fat_ray.spec.run import RunSpec


class RunJob(Strict):
    """One run to be trained. Travels to the workers as JSON.

    Attributes are those of `fat_ray.events.RunStart`, and:
    """

    study: str
    run: str
    """Unique in the study; part of the records' paths."""
    trial: int | None
    """Number of the trial; None for a baseline or a single run."""
    seed: int
    role: Literal["search", "baseline", "single"]
    label: str = ""
    """Name of the baseline."""
    params: dict[str, bool | int | float | str | None] = {}
    """Searched fields and their values, already part of `spec`."""
    spec: RunSpec
    directory: str
    """Absolute path of the study's directory, shared by all workers."""
    resume: bool = False
    """Go on with what `directory` holds of this run, from its newest checkpoint or else from the beginning; false: there is nothing yet."""
    driver: int = 0
    """Number of the driver that started it: when there is a later one, its processes leave (`fat_ray.train.lease`); 0: there is none."""
    follow: list[tuple[int, int]] | None = None
    """random_matched: the followed schedule as (step, active elements after the event), in order."""
