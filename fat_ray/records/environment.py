"""What a run depends on besides its specification. Nothing that identifies a person or a machine: no variables, host, user or paths."""

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

from fat_ray import __version__

_PACKAGES = ("torch", "ray", "optuna", "numpy", "pyarrow", "wandb")
_GIT_TIMEOUT_S = 5.0


def capture(*, world_size: int, device: str, processor: str = "") -> dict[str, Any]:
    """The environment of this process as plain JSON types.

    Args:
        world_size: Number of workers of the run.
        device: What they train on, such as ``cpu`` or ``cuda``.
        processor: Its kind: name of the GPU, or the instructions that torch uses on the CPU, such as ``AVX512``; empty: not known.

    Returns:
        `git_commit` and `git_dirty` of the working directory (None outside a repository, or without git), `versions` by name,
        `world_size`, `device`, `processor`, `platform` and `cpu_count` (logical, of the machine).
    """
    return {
        **git_state(),
        "versions": {"python": platform.python_version(), "fat_ray": __version__, **{name: _version(name) for name in _PACKAGES}},
        "world_size": world_size,
        "device": device,
        "processor": processor,
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu_count": os.cpu_count(),
    }


def git_state() -> dict[str, Any]:
    """`git_commit` of the working directory and whether tracked files differ from it (`git_dirty`); both None when unknown."""
    commit = _git("rev-parse", "--verify", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    # Without optional locks, reading the state writes nothing into the repository.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)  # noqa: S603 fixed arguments
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    # Read from the installed metadata: importing torch or ray for it would take seconds.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
