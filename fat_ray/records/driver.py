"""What the process that drives a study says of itself while it works, so that anybody who sees the directory can tell whether it lives.

`control/beacon.json` is written anew every few seconds. A lock would tell sooner, but not across machines.
"""

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fat_ray.records.files import write_atomic

BEACON = "beacon.json"
BEAT_S = 2.0
"""Time between two signs of life."""
SILENT_S, SILENT_ELSEWHERE_S = 3 * BEAT_S, 15 * BEAT_S
"""How long none makes a driver count as gone: on this machine, if its process is not there either; on another, whose clock may differ."""

RUNNING, ENDING, DONE, STOPPED, FAILED, GONE, UNKNOWN = "running", "ending", "done", "stopped", "failed", "gone", "unknown"
"""What a study is doing: trials run; it ends early; it is over; it was ended early; it has no result; its driver died; nobody says."""


@dataclass(frozen=True)
class DriverReport:
    """The last word of a driver.

    Attributes:
        pid: Its process.
        host: Name of its machine.
        began_at: When it began to drive this study; UTC, ISO 8601.
        beat_at: When it said this.
        state: `RUNNING` or `ENDING`, or as its last word `DONE`, `STOPPED` or `FAILED`.
        detail: Why, where there is a reason.
        total: Trials that the study will have, as far as is known; baselines included.
        warnings: What a person should know, each once.
    """

    pid: int
    host: str
    began_at: str
    beat_at: str
    state: str
    detail: str
    total: int
    warnings: list[str]


def write_report(directory: str | Path, report: DriverReport) -> None:
    """Says it.

    Raises:
        RecordError: It cannot be written.
    """
    write_atomic(_place(directory), json.dumps(asdict(report), indent=1).encode())


def read_report(directory: str | Path) -> DriverReport | None:
    """The last word of the last driver; None where there was none, or none that this version understands."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(_place(directory).read_bytes())
        report = DriverReport(**{name: found[name] for name in DriverReport.__dataclass_fields__})
        datetime.fromisoformat(report.beat_at)
        return report
    return None


def this_host() -> str:
    """Name of this machine."""
    return socket.gethostname()


def judge(report: DriverReport, directory: str | Path, now: datetime | None = None) -> tuple[str, str]:
    """What the study is doing, and more about that: whether the driver lives is judged by its last sign of life.

    Args:
        report: Its last word.
        directory: The study's directory, for what to do next.
        now: The present; None: ask the clock.
    """
    is_here = report.host == this_host()
    if report.state not in (RUNNING, ENDING):
        again = f"fat-ray resume {directory} goes on" if report.state == STOPPED else ""
        return report.state, "; ".join(part for part in (report.detail, again) if part)
    silent_s = ((now or datetime.now(UTC)) - datetime.fromisoformat(report.beat_at)).total_seconds()
    driver = f"process {report.pid} on {report.host}"
    if silent_s <= (SILENT_S if is_here else SILENT_ELSEWHERE_S):
        return report.state, report.detail or ("" if is_here else f"{driver}, last sign of life {max(0.0, silent_s):.0f} s ago")
    if is_here and _is_there(report.pid):
        return report.state, f"{driver} is there, but gave no sign of life for {silent_s:.0f} s"
    return GONE, f"the driver ({driver}) is gone, its last sign of life was at {report.beat_at}: fat-ray resume {directory} goes on"


def _place(directory: str | Path) -> Path:
    return Path(directory) / "control" / BEACON


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
