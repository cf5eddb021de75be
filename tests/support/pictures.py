"""Pictures of studies that never ran."""

from typing import Any

from fat_ray.spec.study import Objective
from fat_ray.view.picture import Picture, TrialLine

F1 = Objective(metric="val/f1", direction="maximize")
ACTIVE = Objective(metric="mean_active", direction="minimize")


def line(number: int = 0, state: str = "running", **given: Any) -> TrialLine:
    """A trial of the search with some settings."""
    values = {
        "name": f"t{number:04d}",
        "params": {"freeze.threshold": -0.123456, "freeze.every": 8, "fisher.every": 4},
        "seeds_done": 0,
        "seeds": 1,
        "step": 20,
        "steps": 60,
        "last": 0.61234,
        "best": 0.71234,
        "active": [(0, 1.0), (9, 1.0), (10, 0.5), (19, 0.5)],
        "elapsed_s": 42.0,
    }
    return TrialLine(**{**values, "state": state, **given})


def picture(*trials: TrialLine, **given: Any) -> Picture:
    """A study of ten trials."""
    values = {"study": "quick", "state": "running", "detail": "", "metric": "val/f1", "objectives": [F1, ACTIVE], "total": 10}
    return Picture(**{**values, "trials": trials, **given})
