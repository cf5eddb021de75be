"""A study as a job of a Ray cluster: sent to its job server, which runs it whether or not anybody looks on."""

import asyncio
import json
import logging
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from aiohttp import ClientError  # of Ray's client, which does not wrap them

import fat_ray
from fat_ray.errors import InputError, ResourceError
from fat_ray.spec.load import LoadedStudy
from fat_ray.study.parcel import STUDY_FILE, pack

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
PROBE_TIMEOUT_S = 10.0
AGAIN_S = 1.0
"""Time between two attempts to reach a cluster that has stopped answering."""
GONE_S = 60.0
"""How long it may not answer until following it is given up."""
STOP_WAIT_S = 120
"""How long runs may take to save their checkpoints after `ray job stop`; Ray's own is 3 s."""
READY_S = 60.0
"""How long a head that has started may take to be ready for jobs."""
_NOT_READY = "No available agent"
_OVER = {"SUCCEEDED", "FAILED", "STOPPED"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Client(Protocol):
    """What is used of Ray's `JobSubmissionClient`."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str:
        """Starts a job."""

    def get_job_info(self, job_id: str) -> Any:
        """How it stands."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """What it wrote, from the beginning, and what it writes."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended.

    Attributes:
        exit_code: That of `fat-ray launch` on the cluster, or 1.
        message: What there is to say; empty when all is well.
    """

    exit_code: int
    message: str


def connect(address: str | None) -> tuple[Client, list[str]]:
    """Connects to the job server of a cluster.

    Args:
        address: Of its dashboard, such as ``http://127.0.0.1:8265``; None: what `RAY_API_SERVER_ADDRESS` says.

    Returns:
        The client, and what the user should know.

    Raises:
        InputError: There is no address, or it is none of a dashboard.
        ResourceError: Nothing answers there, the token is missing or wrong, or another version of Ray runs.
    """
    address = _checked(address or os.environ.get(ADDRESS_VARIABLE))
    mode = _authentication_mode(address)
    if mode == "token" and not has_token():
        raise ResourceError(
            f"the cluster at {address} wants its token: put it into ~/.ray/auth_token (on its head, ray get-auth-token prints it), or name "
            "its file in RAY_AUTH_TOKEN_PATH"
        )
    os.environ["RAY_AUTH_MODE"] = mode  # Ray reads it when it is imported
    client = _client(address)
    _check_version(address, getattr(client, "_server_ray_version", None))
    url = urlsplit(address)
    is_open = url.scheme == "http" and url.hostname not in _LOOPBACK
    return client, [f"{address} is not encrypted; better forward its port to this machine (ssh -L, ray dashboard)"] if is_open else []


def _checked(address: str | None) -> str:
    example = "such as http://127.0.0.1:8265"
    if not address:
        raise InputError(f"--address is missing: the cluster's dashboard, {example}; or set {ADDRESS_VARIABLE}")
    try:
        url = urlsplit(address)
        is_right = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        raise InputError(f"--address {address}: must be the address of the cluster's dashboard, {example}")
    return address.rstrip("/")


def _authentication_mode(address: str) -> str:
    """Whether the cluster wants a token, which it tells everyone; asked first, since Ray's client waits for ever."""
    try:
        with urlopen(f"{address}/api/authentication_mode", timeout=PROBE_TIMEOUT_S) as answer:  # noqa: S310 - http or https
            return str(json.loads(answer.read(4096))["authentication_mode"])
    except HTTPError as error:
        raise ResourceError(f"{address} answers, but not as the dashboard of Ray {_ray_version()} would (HTTP {error.code})") from error
    except (OSError, URLError) as error:
        reason = getattr(error, "reason", error)
        raise ResourceError(f"no cluster at {address}: {getattr(reason, 'strerror', None) or reason}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ResourceError(f"{address} answers, but not as the dashboard of Ray {_ray_version()} would") from error


def has_token(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether Ray would find a token. The token itself is not looked at."""
    if environ.get("RAY_AUTH_TOKEN"):
        return True
    return Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").is_file()


def _client(address: str) -> Client:
    logging.disable(logging.INFO)  # Ray tells of each upload
    with _without("RAY_ADDRESS", ADDRESS_VARIABLE):  # they would count more than the address
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        try:
            client: Client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise ResourceError(
                f"the cluster at {address} refuses the token: on its head, ray get-auth-token prints the right one"
            ) from error
        except (ConnectionError, RuntimeError) as error:
            raise ResourceError(f"no cluster at {address}: {' '.join(str(error).split())}") from error
    return client


@contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _check_version(address: str, theirs: str | None) -> None:
    """What the client learnt of the cluster is no public part of it: without that, the job itself will tell."""
    ours = _ray_version()
    if theirs and theirs.split(".")[:2] != ours.split(".")[:2]:
        raise ResourceError(f"the cluster at {address} runs Ray {theirs}, fat_ray needs {ours}: see cluster/README.md")


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")


def submit(
    client: Client, loaded: LoadedStudy, overrides: Sequence[str], out: str | Path, *, resume: bool = False
) -> tuple[str, list[str]]:
    """Sends a study.

    Args:
        client: From `connect`.
        loaded: The study, with the overrides applied.
        overrides: Settings that replace those of the file.
        out: Directory on the cluster in which the study's own is made, or is.
        resume: Go on with the study that is there.

    Returns:
        Id of the job, and names of the local modules that went with it.

    Raises:
        InputError: Something cannot be sent, or the directory cannot be right; nothing was started.
        ResourceError: The cluster refused the job.
    """
    out = _absolute(str(out))
    launch = ["launch", STUDY_FILE, "--out", out, *(f"--set={override}" for override in overrides)]
    command = ["resume", f"{out}/{loaded.spec.name}"] if resume else launch
    with tempfile.TemporaryDirectory(prefix="fat-ray-") as directory:
        modules = pack(loaded, overrides, Path(directory))
        job = _accepted(
            client,
            entrypoint=shlex.join(["python", "-m", "fat_ray", *command]),
            submission_id=f"{loaded.spec.name}-{secrets.token_hex(4)}",
            runtime_env={
                "working_dir": directory,
                "py_modules": [str(Path(fat_ray.__file__).parent)],
                "excludes": ["**/__pycache__"],
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
        )
    return job, modules


def _accepted(client: Client, **job: Any) -> str:
    """Sends a job; a head that has only just started is asked again."""
    deadline_s = time.monotonic() + READY_S
    while True:
        try:
            return client.submit_job(**job)
        except (RuntimeError, OSError) as error:
            if _NOT_READY not in str(error) or time.monotonic() > deadline_s:
                raise ResourceError(f"the cluster did not take the job: {' '.join(str(error).split())}") from error
        time.sleep(AGAIN_S)


def _absolute(out: str) -> str:
    if "://" in out or not out.startswith("/"):
        raise InputError(
            f"output = {out}: must be an absolute path on a file system that all nodes of the cluster share, such as /mnt/shared/results; "
            "give it with --out"
        )
    return out.rstrip("/") or "/"


def follow(client: Client, job: str, write: Callable[[str], None], *, gone_s: float = GONE_S) -> JobEnd:
    """Writes what a job wrote and writes, until it ends. The job does not depend on it.

    Args:
        client: From `connect`.
        job: Its id.
        write: Gets pieces of its output, each once, also when the connection breaks in between.
        gone_s: How long the cluster may not answer.

    Raises:
        InputError: There is no such job.
        ResourceError: The cluster no longer answers.
    """
    _status(client, job)
    shown, silent_since_s = _Shown(write), None
    while True:
        try:
            asyncio.run(_tail(client, job, shown))
            if (end := _end(client, job)) is not None:
                return end
            silent_since_s = None
        except _UnreachableError as error:
            silent_since_s = silent_since_s or time.monotonic()
            if time.monotonic() - silent_since_s > gone_s:
                raise ResourceError(f"for {gone_s:g} s the cluster has not answered; if it lives, so does the job {job}") from error
        time.sleep(AGAIN_S)


class _UnreachableError(Exception):
    """The connection broke, or there is none."""


class _Shown:
    """Writes a text once, however often it comes again from its beginning.

    Args:
        write: Gets what is new.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._num_written, self._position = write, 0, 0

    def begin(self) -> None:
        """From here on it comes from its beginning."""
        self._position = 0

    def add(self, piece: str) -> None:
        """The next piece."""
        new = piece[max(self._num_written - self._position, 0) :]
        self._position += len(piece)
        self._num_written = max(self._num_written, self._position)
        if new:
            self._write(new)


async def _tail(client: Client, job: str, shown: _Shown) -> None:
    """Shows the log until it ends.

    Raises:
        _UnreachableError: The connection broke.
    """
    shown.begin()
    pieces = client.tail_job_logs(job)
    while True:
        try:
            piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except (RuntimeError, OSError, ClientError) as error:
            raise _UnreachableError from error
        shown.add(piece)


def _status(client: Client, job: str) -> Any:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise InputError(f"--follow {job}: the cluster knows no such job; ray job list shows them") from error


def _end(client: Client, job: str) -> JobEnd | None:
    try:
        info = client.get_job_info(job)
    except (RuntimeError, OSError) as error:
        raise _UnreachableError from error
    status = str(getattr(info.status, "value", info.status))
    if status not in _OVER:
        return None
    if status == "SUCCEEDED":
        return JobEnd(0, "")
    code = info.driver_exit_code
    if status == "STOPPED":
        return JobEnd(143, "the job was stopped")
    return JobEnd(code or 1, "" if code else f"the job failed: {' '.join(str(info.message).split())}")
