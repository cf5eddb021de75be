"""What runs in the process that talks to W&B: it does what it is told on stdin, line by line, and answers on stdout.

``{"do": "advance", "run": …}``, ``finish``, ``sum_up`` and ``close``; see `Writer`. When stdin ends without ``close``, whoever asked is
dead, and so is this process at once: another may be at work on the same files.
"""

import json
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fat_ray.errors import RecordError
from fat_ray.records.mirror.writer import Writer
from fat_ray.records.redact import scrub
from fat_ray.spec.study import WandbSpec

NICE = 10
"""Training comes first."""

Say = Callable[..., None]


def main(arguments: list[str]) -> NoReturn:
    """Does what `arguments` say: the study's directory, and mode, project and entity as JSON."""
    os.nice(NICE)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever asked decides when this is over
    say = _answers()
    code = 1
    try:
        _mirror(say, *arguments)
        code = 0
    except Exception as error:  # noqa: BLE001 - it is told to whoever asked
        say("failed", reason=reason_of(error))
    _end(code)


def _end(code: int) -> NoReturn:
    """Ends without W&B's own farewell, which can wait for a server; all runs are closed."""
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os._exit(code)


def reason_of(error: BaseException) -> str:
    """What went wrong in a line."""
    return scrub(str(error).strip().partition("\n")[0]) or type(error).__name__


def _answers() -> Say:
    """Answers go to stdout; whatever else writes there is sent to stderr."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(said: str, **details: Any) -> None:
        stream.write(json.dumps({"said": said, **details}) + "\n")
        stream.flush()

    return say


def _mirror(say: Say, directory: str, spec: str) -> None:
    asked: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    writer = Writer(Path(directory), WandbSpec.model_validate_json(spec), Path(os.environ["TMPDIR"]))
    while (given := asked.get())["do"] != "close":
        try:
            _do(say, writer, given)
        except RecordError as error:
            say("unreadable", run=given.get("run", ""), reason=reason_of(error))
    say("closed")


def _listen(asked: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        given = json.loads(line)
        asked.put(given)
        if given["do"] == "close":
            return
    _end(1)


def _do(say: Say, writer: Writer, given: dict[str, Any]) -> None:
    match given["do"]:
        case "advance":
            url = writer.advance(given["run"])
            say("begun", run=given["run"], url=url) if url else say("advanced", run=given["run"])
        case "finish":
            rows, url = writer.finish(given["run"])
            say("finished", run=given["run"], rows=rows, url=url)
        case "sum_up":
            say("summed_up", url=writer.sum_up(given["document"]))


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main(sys.argv[1:])
