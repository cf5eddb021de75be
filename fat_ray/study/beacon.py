"""Signs of life of the driver, for whoever looks at the study's directory from elsewhere."""

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fat_ray.errors import RecordError
from fat_ray.records.driver import BEAT_S, DriverReport, this_host, write_report
from fat_ray.study.ledger import Ledger
from fat_ray.study.portrait import going
from fat_ray.train.lease import is_superseded, read_driver


class Beacon:
    """Writes `control/beacon.json` every few seconds, from a thread: the driver may wait for W&B or the cluster for longer.

    Args:
        directory: The study's directory.
        ledger: Its trials.
    """

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self._directory, self._ledger = directory, ledger
        self._driver = read_driver(directory).number
        self._began_at = _at(ledger.started_s - time.monotonic())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fat_ray-beacon", daemon=True)

    def start(self) -> None:
        """The first sign of life, and those that follow."""
        self._say(*going(self._ledger))
        self._thread.start()

    def stop(self, state: str | None, detail: str = "") -> None:
        """The last word: how the study ended; None leaves the last sign of life as it is."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if state is not None:
            self._say(state, detail)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._say(*going(self._ledger))

    def _say(self, state: str, detail: str) -> None:
        ledger = self._ledger
        report = DriverReport(os.getpid(), this_host(), self._began_at, _at(0.0), state, detail, ledger.total, list(ledger.notes))
        try:
            if not is_superseded(self._directory, self._driver):  # else another driver speaks here now
                write_report(self._directory, report)
        except RecordError:  # a full disk, or a file system that is away: silence says it too
            return


def _at(after_s: float) -> str:
    """So many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=after_s)).isoformat(timespec="seconds")
