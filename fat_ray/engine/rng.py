"""The state of the random generators that a step may use: Python's, NumPy's global one, torch's on the CPU and on this rank's GPU."""

import random
from typing import Any

import numpy as np
import torch

from fat_ray.fisher.flat import Arrays


def rng_state(device: torch.device) -> tuple[Arrays, dict[str, Any]]:
    """State of all generators of this process: arrays, and the few numbers beside them as JSON types.

    Args:
        device: Where the rank trains.
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - tasks and libraries may use the global generator
    arrays = {"python": np.array(words, np.uint32), "numpy": np.asarray(keys), "torch": torch.get_rng_state().numpy()}
    if device.type == "cuda":
        arrays["cuda"] = torch.cuda.get_rng_state(device).numpy()
    numbers = {"python": [version, gauss], "numpy": [kind, position, has_gauss, cached]}
    return arrays, numbers


def set_rng_state(arrays: Arrays, numbers: dict[str, Any], device: torch.device) -> None:
    """Brings all generators of this process to a state of `rng_state`; a GPU's is left alone where the state is that of a CPU run."""
    version, gauss = numbers["python"]
    random.setstate((version, tuple(arrays["python"].tolist()), gauss))
    kind, position, has_gauss, cached = numbers["numpy"]
    np.random.set_state((kind, arrays["numpy"], position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(torch.from_numpy(arrays["torch"]))
    if device.type == "cuda" and "cuda" in arrays:
        torch.cuda.set_rng_state(torch.from_numpy(arrays["cuda"]), device)
