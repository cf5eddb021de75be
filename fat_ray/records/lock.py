"""Who is at work in a study's directory: one process at a time drives it, or tidies it up."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fat_ray.errors import OutputError

log = logging.getLogger(__name__)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Holds a lock that goes with this process, however it ends; without effect where the file system has none.

    Raises:
        OutputError: Another process holds it.
    """
    path = directory / "control" / "driver.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"another process is at work in {directory}; wait for it, or stop it first") from error
        except OSError as error:
            log.debug("no lock on %s: %s", path, error)
        yield
