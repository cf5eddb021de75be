"""Why a run failed, in one line that a person can act on. Tracebacks go to the run's log file. Neither holds secrets."""

import re
import signal
from collections.abc import Mapping
from pathlib import Path

from fat_ray.errors import FatRayError
from fat_ray.records.redact import scrub

MAX_REASON = 300
"""Characters; what is longer is cut."""

DIED = "its process died or was killed (out of memory, a signal, a lost node)"

SILENT = "it gave no sign for longer than train.stall_timeout_s (its process is frozen, or its host is cut off)"

_COLLECTIVE = r"gloo/transport|NCCL.*(remote process|abort)|DistNetworkError"
_LOST_PEER = re.compile(rf"{_COLLECTIVE}|Connection (closed|reset|refused) by peer|Broken pipe")


def one_line(error: BaseException) -> str:
    """What went wrong, without line breaks: the message of our own errors, type and message of any other."""
    text = " ".join(scrub(str(error)).split())  # before it is cut: half a secret would not be recognised
    if not isinstance(error, FatRayError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    elif not text:
        text = type(error).__name__
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


def killed_by(exit_code: int) -> str:
    """What the exit code of a process that ended without a word means."""
    if exit_code >= 0:
        return f"its process ended early with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def lost_peer(reason: str) -> bool:
    """Whether a worker failed in a collective, because another one was gone. It may know before Ray does, above all of a lost node."""
    return re.search(_COLLECTIVE, reason) is not None


def root_cause(reasons: Mapping[int, str]) -> str:
    """The reason to show when several workers failed: one that lost its peers is the victim of another.

    Args:
        reasons: Rank to reason, at least one.
    """
    rank, reason = min(reasons.items(), key=lambda item: (_LOST_PEER.search(item[1]) is not None, item[0]))
    if _LOST_PEER.search(reason):
        return f"worker {rank} lost another worker of the run, which died, was killed or froze ({reason})"
    return f"worker {rank}: {reason}"


def write_log(directory: str | Path, run: str, text: str) -> Path:
    """Appends to ``<directory>/logs/<run>.log`` and returns the path."""
    path = Path(directory) / "logs" / f"{run}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(scrub(text).rstrip("\n") + "\n")
    return path
