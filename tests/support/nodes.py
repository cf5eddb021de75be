"""A Ray cluster of several nodes on this machine, whose nodes come and go while a study runs on it from another process."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.ray_session import ROOT

ADDRESS = "127.0.0.1"
UP_S = 60
"""How long a node may take to come up."""


class Node:
    """One node: the process of `ray start --block`, from which all others of the node descend."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def wait_until_up(self) -> None:
        """Returns once it is part of the cluster."""
        deadline_s = time.monotonic() + UP_S
        while "Ray runtime started" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline_s, self._log.read_text()
            time.sleep(0.1)

    def hosts(self, actor: str) -> bool:
        """Whether an actor of this class runs here."""
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::") and f"ray::{actor}" in " ".join(process.cmdline()):
                    return True
        return False

    def kill(self) -> None:
        """All its processes at once, as when the power goes."""
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            mine = psutil.Process(self._process.pid)
            return [mine, *mine.children(recursive=True)]
        return []


class Nodes:
    """The cluster: a head without CPUs, and whatever is added."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.address = f"{ADDRESS}:{_free_port()}"
        self._all: list[Node] = []
        head = self._start("--head", f"--port={self.address.partition(':')[2]}", "--num-cpus=0")
        head.wait_until_up()

    def add(self, num_cpus: int = 1) -> Node:
        """One more node, which need not be up yet."""
        return self._start(f"--address={self.address}", f"--num-cpus={num_cpus}")

    def close(self) -> None:
        """Kills what is left."""
        for node in self._all:
            node.kill()

    def _start(self, *options: str) -> Node:
        number = len(self._all)
        common = (f"--temp-dir={self._directory}/{number}", f"--node-ip-address={ADDRESS}", "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000")
        quiet = ("--block", "--include-dashboard=false", "--disable-usage-stats") if "--head" in options else ("--block", "--disable-usage-stats")
        path = self._directory / f"node-{number}.log"
        with path.open("wb") as log:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *common, *quiet]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
        self._all.append(Node(process, path))
        return self._all[-1]


@contextmanager
def cluster() -> Iterator[Nodes]:
    """A cluster that ends with the context."""
    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp", ignore_cleanup_errors=True) as directory:  # short: sockets lie below it
        nodes = Nodes(Path(directory))
        try:
            yield nodes
        finally:
            nodes.close()


def environment() -> dict[str, str]:
    """Of the nodes and of the driver; that of this process may be meant for a Ray of one node."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def _free_port() -> int:
    with socket.create_server((ADDRESS, 0)) as server:
        return int(server.getsockname()[1])
