"""The freeze schedule of a run as a picture: groups in network order downwards, steps to the right, light where a group trains."""

import numpy as np
import pyarrow as pa

WIDTH, HEIGHT = 512, 384
"""Pixels; runs with fewer steps or groups are enlarged, longer ones are sampled."""

_TRAINS, _FROZEN = np.array([253, 231, 37], np.uint8), np.array([49, 54, 149], np.uint8)


def schedule_grid(freezes: pa.Table, num_groups: int, num_steps: int) -> np.ndarray:
    """Which groups train at which step.

    Args:
        freezes: The table `freezes` of a run. A group that is frozen at step s was still updated by that step. It does not say
            which groups thawed: those of policies that thaw count as frozen to the end.
        num_groups: Its groups.
        num_steps: Steps that it did.

    Returns:
        bool, (num_groups, num_steps).
    """
    grid = np.ones((num_groups, num_steps), dtype=bool)
    for step, group in zip(freezes["step"].to_pylist(), freezes["group"].to_pylist(), strict=True):
        grid[group, step + 1 :] = False
    return grid


def schedule_picture(grid: np.ndarray) -> np.ndarray:
    """The picture.

    Args:
        grid: As `schedule_grid` returns it.

    Returns:
        uint8, (HEIGHT, WIDTH, 3).
    """
    shown = grid if grid.size else np.ones((1, 1), dtype=bool)
    rows = np.arange(HEIGHT) * shown.shape[0] // HEIGHT
    columns = np.arange(WIDTH) * shown.shape[1] // WIDTH
    return np.where(shown[np.ix_(rows, columns)][..., None], _TRAINS, _FROZEN)
