"""Requests to a run: files in ``control/`` that its workers look for, so that nothing ever has to be killed.

``<run>.stop`` asks the run to end at its next step, ``<run>.save`` to save a checkpoint and go on.
"""

import os
import tempfile
import time
from pathlib import Path

from fat_ray.engine.request import Request
from fat_ray.errors import RecordError
from fat_ray.events import Status
from fat_ray.train.lease import is_superseded

POLL_INTERVAL_S = 0.25


def stop_file(directory: str | Path, run: str) -> Path:
    """Where a stop of the run is asked for: ``<directory>/control/<run>.stop``; its content is the status to end with."""
    return Path(directory) / "control" / f"{run}.stop"


def request_stop(directory: str | Path, run: str, status: Status) -> None:
    """Asks the workers of a run to end it; readers see the whole request or none. A later request replaces an earlier one.

    Args:
        directory: The study's directory.
        run: Id of the run, which need not have started.
        status: What the run ends with: `Status.PRUNED`, or `Status.STOPPED`, before which it saves a checkpoint.
    """
    target = stop_file(directory, run)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{run}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(status.value)
    Path(temporary).replace(target)


def request_save(directory: str | Path, run: str) -> None:
    """Asks the workers of a run to save a checkpoint after their present step."""
    target = _save_file(directory, run)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch()


def stop_requested(directory: str | Path, run: str) -> Status | None:
    """The status that the run is asked to end with, or None.

    Raises:
        RecordError: The stop file holds something else, so it was not written by `request_stop`.
    """
    path = stop_file(directory, run)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    if text not in (Status.PRUNED, Status.STOPPED):
        raise RecordError(f"{path} holds {text[:40]!r}; a stop file holds 'pruned' or 'stopped'")
    return Status(text)


def clear_requests(directory: str | Path, run: str, driver: int = 0) -> None:
    """Withdraws what a run is asked for, unless a later driver than this one has asked."""
    if not is_superseded(directory, driver):
        stop_file(directory, run).unlink(missing_ok=True)
        _save_file(directory, run).unlink(missing_ok=True)


class RequestPoll:
    """What the engine asks at each step; looks at the files a few times per second only.

    Args:
        directory: The study's directory.
        run: Id of the run.
        driver: Number of the driver for which it is trained; 0: for none.
        interval_s: Time between two looks.
    """

    def __init__(self, directory: str | Path, run: str, driver: int = 0, interval_s: float = POLL_INTERVAL_S) -> None:
        self._directory, self._run, self._driver = directory, run, driver
        self._interval_s = interval_s
        self._next_look_s = float("-inf")
        self._last: Request | None = None

    def __call__(self) -> Request | None:
        """What the run is asked for now. It is told once to save, and again and again to end."""
        now_s = time.monotonic()
        if self._last is None and now_s >= self._next_look_s:
            self._last = self._look()
            self._next_look_s = now_s + self._interval_s
        if self._last is Request.SAVE:
            self._last = None
            return Request.SAVE
        return self._last

    def _look(self) -> Request | None:
        if is_superseded(self._directory, self._driver):
            return Request.LEAVE
        if (status := stop_requested(self._directory, self._run)) is not None:
            return Request(status.value)
        try:
            _save_file(self._directory, self._run).unlink()
        except FileNotFoundError:
            return None
        return Request.SAVE


def _save_file(directory: str | Path, run: str) -> Path:
    return Path(directory) / "control" / f"{run}.save"
