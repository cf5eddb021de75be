"""Runs a function on several ranks over gloo on this machine and returns what each returned."""

import gc
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=40)


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """`function(*args)` on each rank of a fresh process group, one thread each.

    Args:
        function: A module-level function; what it returns is saved with torch.save.
        world_size: Number of processes.
        *args: Picklable.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (function, world_size, folder, args), nprocs=world_size, start_method="spawn")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]


def _rank(rank: int, function: Callable[..., Any], world_size: int, folder: str, args: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        torch.save(function(*args), Path(folder, f"{rank}.pt"))
    finally:
        gc.collect()  # a DDP wrapper that outlives its process group aborts the process at its end
        dist.destroy_process_group()
