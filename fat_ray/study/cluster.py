"""The Ray cluster of a study: a local one of its own on loopback, or one that runs already."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray

from fat_ray.errors import ResourceError
from fat_ray.study.daemons import own_session
from fat_ray.study.environment import DIRECTORY_PREFIX, set_defaults, short_directory
from fat_ray.train.placement import alive_nodes
from fat_ray.train.resources import Resources
from fat_ray.train.run import TRAIN_ENV

PROBE_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 20.0


@contextmanager
def connect(address: str | None, variables: Mapping[str, str] = TRAIN_ENV) -> Iterator[list[Resources]]:
    """Connects to a cluster, or starts a local one, and yields what each of its nodes has.

    A Ray that this process is connected to already is used and left as it is.

    Args:
        address: ``host:port`` of the cluster's head; None: a local Ray that ends with the context.
        variables: Environment of the processes that are started there.

    Raises:
        ResourceError: The cluster cannot be reached, or Ray cannot be started.
    """
    set_defaults(TRAIN_ENV)
    if address is not None:
        _check_reachable(address)
    if ray.is_initialized():
        yield alive_nodes()
    elif address is None:
        with _local(variables):
            yield alive_nodes()
    else:
        with _remote(address, variables):
            yield alive_nodes()


@contextmanager
def _local(variables: Mapping[str, str]) -> Iterator[None]:
    files = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=short_directory()))
    try:
        with own_session():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(files),
                runtime_env={"env_vars": {**variables, **_import_path()}},
            )
    except Exception as error:
        ray.shutdown()
        shutil.rmtree(files, ignore_errors=True)
        raise ResourceError(f"a local Ray could not be started: {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(files, ignore_errors=True)


@contextmanager
def _remote(address: str, variables: Mapping[str, str]) -> Iterator[None]:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": dict(variables)})
    except (Exception, SystemExit) as error:
        raise ResourceError(f"no Ray cluster at {address}: {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Fails soon where `ray.init` would try for two minutes.

    Raises:
        ResourceError: Nothing, or something else than Ray, answers at the address.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ResourceError(f"address = {address}: must be host:port of the cluster's head node, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"no Ray cluster at {address}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        ) from error
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        found = subprocess.run(check, capture_output=True, timeout=HEALTH_TIMEOUT_S, check=False).returncode == 0  # noqa: S603 - our own interpreter
    except subprocess.TimeoutExpired:
        found = False
    if not found:
        raise ResourceError(f"no Ray cluster at {address}: something listens there, but it does not answer as a Ray head of this version")


def _import_path() -> dict[str, str]:
    """What the driver can import, its workers can: `module:function` of a task often lies where the command was given."""
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path or str(Path.cwd()) for path in sys.path))}
