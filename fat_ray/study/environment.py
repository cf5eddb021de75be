"""What Ray finds when it is imported and started: environment variables, some of which it reads on import, and a place for its files."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fat_ray.errors import ResourceError

TUNE_ENV: Mapping[str, str] = MappingProxyType(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",  # the console is ours
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # so are the records
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no metric
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's would kill the trials
        "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's snapshots are never read
        "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",  # the plan has been checked
        "RAY_AUTH_MODE": "disabled",  # unset, a local Ray would leave a token in the home directory, and a remote one would fail
    }
)
LOCAL_ENV: Mapping[str, str] = MappingProxyType({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})
"""Binds every socket of a local Ray to 127.0.0.1."""


def resolve_address(address: str | None) -> str | None:
    """The cluster to use: the given one, else `RAY_ADDRESS`, which `ray job submit` sets; None for a local Ray of one's own."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def prepare(address: str | None) -> None:
    """Sets what the user has not set.

    Args:
        address: As returned by `resolve_address`.
    """
    set_defaults(TUNE_ENV if address else {**TUNE_ENV, **LOCAL_ENV})


def set_defaults(variables: Mapping[str, str]) -> None:
    """Sets environment variables that are not set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


DIRECTORY_PREFIX = "fr-"
_LONGEST_DIRECTORY = 28  # the paths of Ray's sockets lie below it and may have 107 characters in all


def short_directory() -> Path:
    """Where a local Ray makes the directory of its files.

    Raises:
        ResourceError: The paths of its sockets would be too long.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a private directory there
        if len(parent) < _LONGEST_DIRECTORY and Path(parent).is_dir():
            return Path(parent)
    raise ResourceError(f"a local Ray needs a short path for its sockets; TMPDIR = {tempfile.gettempdir()} is too long")
