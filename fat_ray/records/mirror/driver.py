"""The driver's side of the W&B mirror: it tells a process of its own which runs have news, and never waits for it while anything trains.

The records are the truth: the mirror reads nothing else, and its failure stops nothing.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fat_ray.records.manifest import check_writable
from fat_ray.records.mirror.access import check_key, resolve_mode
from fat_ray.records.mirror.child import Child, Message
from fat_ray.records.mirror.marks import Marks
from fat_ray.records.redact import scrub
from fat_ray.spec.study import WandbSpec

log = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""How long the end of a study waits for W&B since it last got anywhere."""


class WandbMirror:
    """The W&B side of one study. Whatever goes wrong in W&B ends the mirror with one warning, never a run.

    Args:
        directory: The study's directory; W&B's own files go to its ``wandb/``.
        spec: Mode, project and entity. With mode ``disabled`` nothing is done and wandb is not imported.
        patience_s: How long `close` waits while nothing happens.
    """

    def __init__(self, directory: str | Path, spec: WandbSpec, patience_s: float = PATIENCE_S) -> None:
        self._directory = Path(directory).absolute()
        self._asked = spec.mode
        self._spec = spec.model_copy(update={"mode": resolve_mode(spec.mode)})
        self._marks = Marks(self._directory, self._spec)
        self._patience_s = patience_s
        self._child: Child | None = None
        self._open: set[str] = set()
        self._finished: set[str] = set()
        self._links: dict[str, str] = {}
        self._off = self._spec.mode == "disabled"

    def check_writable(self) -> None:
        """Makes sure, before a study starts, that the mirror can write, and that mode ``online`` finds a key. Reaches no network.

        Raises:
            OutputError: ``wandb/`` cannot be written (W&B would silently write elsewhere), or there is no key.
        """
        if self._off:
            return
        check_writable(self._directory / "wandb")
        if self._asked == "online":
            check_key("wandb.mode = online", "use --wandb offline")

    def begin_anew(self, run: str) -> None:
        """Forgets that a run has been mirrored: all of it is mirrored again, from the records, under the same id."""
        self._finished.discard(run)
        self._marks.unset(run)

    def catch_up(self, runs: Iterable[str]) -> None:
        """Mirrors runs that have ended, but for those that have been mirrored to their end: a driver may have been killed before it was."""
        for run in runs:
            self.finish(run)

    def advance(self, run: str) -> None:
        """Has what the run's records gained since the last call mirrored; a run that has not started yet is left alone."""
        self._tell("advance", run)

    def finish(self, run: str) -> None:
        """Has the rest of a run mirrored, with its freeze schedule, summary, files and status, and its W&B run closed."""
        self._tell("finish", run)
        self._open.discard(run)
        self._finished.add(run)

    def sum_up(self, document: Mapping[str, Any]) -> None:
        """Has the W&B run about the study as a whole written.

        Args:
            document: The study's picture as `fat_ray.view.document` tells it.
        """
        self._hear()
        if not self._off:
            self._process().send("sum_up", document=document)

    def new_links(self) -> dict[str, str]:
        """Where runs can be looked at that were begun online since the last call, by run."""
        self._hear()
        links, self._links = self._links, {}
        return links

    def close(self) -> None:
        """Finishes the runs that are still open, and waits until all is written, as long as W&B gets anywhere."""
        for run in sorted(self._open):
            self.finish(run)
        child = self._child
        if child is None:
            return
        child.send("close")
        while self._child is not None:
            left_s = child.heard_s + self._patience_s - time.monotonic()
            try:
                self._take(child.receive(max(left_s, 0.01)))
            except TimeoutError:
                if time.monotonic() - child.heard_s >= self._patience_s:
                    self._give_up(f"W&B got nowhere for {self._patience_s:g} s")

    def abandon(self) -> None:
        """Ends the mirror at once; what is not written yet, a later `catch_up` makes up for."""
        self._off = True
        self._end()

    def _tell(self, do: str, run: str) -> None:
        self._hear()
        if self._off or run in self._finished or self._marks.get(run):
            return
        self._open.add(run)
        self._process().send(do, run=run)

    def _process(self) -> Child:
        if self._child is None:
            arguments = [str(self._directory), self._spec.model_dump_json()]
            self._child = Child(arguments, self._directory / "wandb" / "files")
        return self._child

    def _hear(self) -> None:
        """Takes note of what the process said since the last call."""
        with suppress(TimeoutError):
            while self._child is not None:
                self._take(self._child.receive())

    def _take(self, answer: Message | None) -> None:
        match answer:
            case None:
                self._give_up("its process died")
            case {"said": "failed", "reason": reason}:
                self._give_up(reason)
            case {"said": "unreadable", "run": run, "reason": reason}:
                self._finished.add(run)
                log.warning("W&B shows no more of run %s: %s", run, scrub(reason))
            case {"said": "begun", "run": run, "url": url}:
                self._links[run] = url
            case {"said": "closed"}:
                self._end()

    def _give_up(self, reason: str) -> None:
        self._off = True
        self._end()
        log.warning("W&B mirror off: %s. The records are complete without it.", scrub(reason))

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None
