"""Command lines that start soon, each in a process of its own that can be killed: forked from one that has imported everything."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

SERVER = """
import os, sys
from fat_ray.study.environment import prepare

prepare(None)
import ray, torch  # not wandb, which makes a directory of its process when it is imported
import fat_ray.cli.main, fat_ray.study.cluster, fat_ray.study.launch, fat_ray.study.tune, fat_ray.train.run, fat_ray.tasks.registry
from fat_ray.__main__ import main

print("ready", flush=True)
for line in sys.stdin:
    log, *arguments = line.rstrip("\\n").split("\\t")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        sys.argv[1:] = arguments
        main()
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Commands:
    """Runs `fat-ray` command lines, one at a time.

    Attributes:
        log: What they print.
    """

    log: Path
    _server: subprocess.Popen[str]
    pid: int = field(default=0)

    def start(self, *arguments: object) -> None:
        """Starts one, in a session and group of its own."""
        assert self._server.stdin is not None
        self._server.stdin.write("\t".join([str(self.log), *map(str, arguments)]) + "\n")
        self._server.stdin.flush()
        self.pid = int(self._line())

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Sends it a signal, or all of its group; it may have ended."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        return int(self._line())

    def runs(self) -> bool:
        """Whether it has not ended."""
        return Path(f"/proc/{self.pid}").exists()

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits; fails with what it printed if it ends meanwhile. The test's time limit ends a wait that is in vain."""
        while not condition():
            assert self.runs() or condition(), self.log.read_text()
            time.sleep(0.01)

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


@contextmanager
def commands(log: Path, **variables: str) -> Iterator[Commands]:
    """A place to run command lines from, with these environment variables."""
    given = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    scratch = tempfile.mkdtemp(prefix="fr-", dir="/tmp")  # what the Ray of a killed driver leaves; short: sockets lie below it
    environment = {**given, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": scratch, **variables}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True, cwd=ROOT
    )
    started = Commands(log, server)
    try:
        assert started._line() == "ready\n"
        yield started
    finally:
        if started.pid and started.runs():
            started.signal(signal.SIGKILL, group=True)
        server.kill()
        server.wait()
        shutil.rmtree(scratch, ignore_errors=True)
