"""A process for everything that is done with wandb: whatever happens in it, this one goes on, and nothing of it is left behind.

Both sides send a JSON object per line. Nothing here waits for the other side but `Child.receive`, as long as it is told to.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fat_ray

Message = dict[str, Any]

_LONGEST_SOCKET = 60
"""Characters of a temporary directory below which W&B can still make its socket: the path of one has 107 at most."""
_DIE_S = 5.0


class Child:
    """The process `fat_ray.records.mirror.process`. It ends by itself when this one does.

    Args:
        arguments: Its command line.
        home: Directory for what W&B writes besides runs, such as caches.

    Attributes:
        scratch: Its temporary directory.
        heard_s: When it last said something, by the monotonic clock; at first, when it began.
    """

    def __init__(self, arguments: Sequence[str], home: Path) -> None:
        self.scratch, self.heard_s = _scratch(home), time.monotonic()
        self._asked: queue.Queue[bytes] = queue.Queue()
        self._answers: queue.Queue[Message | None] = queue.Queue()
        with (home / "mirror.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - this package, by this interpreter
                [sys.executable, "-P", "-m", "fat_ray.records.mirror.process", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(home, self.scratch),
                process_group=0,  # Ctrl-C in a terminal is for this process alone
            )
        for serve in (self._speak, self._listen):
            threading.Thread(target=serve, daemon=True).start()

    def send(self, do: str, **details: Any) -> None:
        """Asks for something. One that has ended hears nothing."""
        self._asked.put(json.dumps({"do": do, **details}).encode() + b"\n")

    def receive(self, timeout_s: float = 0.0) -> Message | None:
        """The next thing that it says.

        Args:
            timeout_s: How long to wait for it; 0: not at all.

        Returns:
            None when it has ended and said everything.

        Raises:
            TimeoutError: It said nothing in time.
        """
        try:
            answer = self._answers.get(timeout=timeout_s) if timeout_s > 0 else self._answers.get_nowait()
        except queue.Empty:
            raise TimeoutError from None
        if answer is None:
            self._answers.put(None)
        return answer

    def end(self) -> None:
        """Ends it at once, if it has not ended, and removes its temporary files."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # in the kernel, say on a dead network file system
            self._process.wait(_DIE_S)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _speak(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            while self._process.poll() is None:
                self._process.stdin.write(self._asked.get())
                self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                self._answers.put(json.loads(line))
            self.heard_s = time.monotonic()
        self._answers.put(None)


def _scratch(home: Path) -> Path:
    """A temporary directory in `home`, where that is possible."""
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob("tmp-wandb-*"):
        shutil.rmtree(left, ignore_errors=True)  # by a process that was killed
    return Path(tempfile.mkdtemp(prefix="tmp-wandb-", dir=home if len(str(home)) < _LONGEST_SOCKET else None))


def _environment(home: Path, scratch: Path) -> Mapping[str, str]:
    """W&B stages tables and logs in the home directory otherwise, which a sync from elsewhere would not find."""
    root = str(Path(fat_ray.__file__).parents[1])
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}  # the study says which
    return inherited | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "TMPDIR": str(scratch),
        "WANDB_DATA_DIR": str(home),
        "WANDB_CACHE_DIR": str(home),
        "WANDB_ARTIFACT_DIR": str(home),
        "WANDB_ERROR_REPORTING": "false",
    }
