"""Environment variables that Ray and Tune read; set before Ray is imported, since Ray reads some of them then."""

import os
from collections.abc import Mapping
from types import MappingProxyType

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
