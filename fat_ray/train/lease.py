"""Who may write in a study's directory: one driver at a time, and of each run one process, whatever a killed driver has left alive.

Ray's workers outlive a driver that is killed: by seconds on one machine, by a minute when Ray's servers went with it. So

- drivers are numbered; ``control/driver.json`` holds the number of the latest, and whoever works for an older one leaves at its next step;
- rank 0 of a run holds a lock from before it looks at what is there until it has written its last record. The next one waits for it.

The number asks the old process to go, the lock waits until it has gone. A lock goes with its process, however that ends.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fat_ray.errors import RecordError, RunFailedError, SupersededError
from fat_ray.records.files import write_atomic
from fat_ray.records.lock import alone

log = logging.getLogger(__name__)

WAIT_S = 300.0
"""How long the next process of a run waits for the one before it, which may be in the middle of an evaluation."""
LOOK_S = 0.1
"""Time between two looks at a lock."""


@dataclass(frozen=True)
class Driver:
    """The driver of a study.

    Attributes:
        number: 1 for the first, one more for each that went on with the study; 0: there was none.
        worked_s: How long this one and those before it were at work, as far as is known.
    """

    number: int = 0
    worked_s: float = 0.0


def read_driver(directory: str | Path) -> Driver:
    """The latest driver of a study.

    Raises:
        RecordError: The file is not one that `write_driver` wrote.
    """
    path = _driver_file(directory)
    try:
        return Driver(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return Driver()
    except (OSError, ValueError, TypeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error


def write_driver(directory: str | Path, driver: Driver) -> None:
    """Makes a driver the latest, or says how long it has been at work. Only whoever holds the study's lock may."""
    write_atomic(_driver_file(directory), json.dumps(asdict(driver)).encode())


def is_superseded(directory: str | Path, number: int) -> bool:
    """Whether a later driver than this one works on the study; 0 is no driver, and never superseded."""
    return number > 0 and read_driver(directory).number > number


@contextmanager
def sole_driver(directory: Path) -> Iterator[Driver]:
    """Holds the study's lock, which goes with this process however it ends, and counts one driver more.

    Yields:
        This driver, with what those before it have worked.

    Raises:
        OutputError: Another process holds the lock.
    """
    with alone(directory):
        before = read_driver(directory)
        driver = Driver(before.number + 1, before.worked_s)
        write_driver(directory, driver)
        yield driver


@contextmanager
def sole_writer(directory: str | Path, run: str, number: int = 0, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds a run's lock; whoever writes the records or checkpoints of a run does it within.

    Args:
        directory: The study's directory.
        run: Id of the run.
        number: The driver for which the run is written; 0: for none.
        wait_s: How long to wait for the process that holds the lock.

    Raises:
        RunFailedError: It holds it still.
        SupersededError: A later driver works on the study; nothing may be written for this one.
    """
    path = Path(directory) / "control" / f"{run}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquired(path, run, time.monotonic() + wait_s)
    try:
        if is_superseded(directory, number):
            raise SupersededError(f"another process goes on with run {run}")
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # while it is held: whoever waits for it notices, see `_acquired`
        finally:
            os.close(handle)


def _acquired(path: Path, run: str, deadline_s: float) -> int:
    """The open lock file, locked."""
    said = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, path)
            if _is_at(handle, path):
                return handle
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                os.close(handle)
                raise RunFailedError(f"another process still writes run {run}: it holds the lock {path}; end it first") from None
            if not said:
                log.warning("run %s waits for the process that wrote it before", run)
                said = True
        os.close(handle)
        time.sleep(LOOK_S)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one that has the name: its holder before removed it if it ended in good order."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int, path: Path) -> None:
    """Takes a lock, or raises BlockingIOError; without effect where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        log.debug("no lock on %s: %s", path, error)


def _driver_file(directory: str | Path) -> Path:
    return Path(directory) / "control" / "driver.json"
