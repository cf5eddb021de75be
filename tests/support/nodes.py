"""A Ray cluster of several nodes on this machine, whose nodes come and go while a study runs on it from another process."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.ray_session import ROOT

ADDRESS = "127.0.0.1"
UP_S = 60
"""How long a node may take to come up."""


class Node:
    """One node: the process of `ray start --block`, from which all others of the node descend."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

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
        self.address = f"{ADDRESS}:{free_port()}"
        self._all: list[Node] = []
        self._start("--head", f"--port={self.address.partition(':')[2]}", "--num-cpus=0", "--include-dashboard=false")

    def add(self, num_cpus: int = 1, *, private: Path | None = None) -> Node:
        """One more node, which is up when this returns.

        Args:
            num_cpus: Its CPUs.
            private: A directory of which this node has one of its own, as if it were on a disk that others do not see.
        """
        apart = () if private is None else ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(private))
        return self._start(f"--address={self.address}", f"--num-cpus={num_cpus}", apart=apart)

    def close(self) -> None:
        """Kills what is left."""
        for node in self._all:
            node.kill()

    def _start(self, *options: str, apart: Sequence[str] = ()) -> Node:
        place, log = self._directory / str(len(self._all)), self._directory / f"{len(self._all)}.log"
        where = (f"--temp-dir={place}", f"--node-ip-address={ADDRESS}", "--min-worker-port=0", "--max-worker-port=0")
        command = [
            *apart,
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            *options,
            *where,
            "--object-store-memory=100000000",
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment())
        self._all.append(Node(process))
        deadline_s = time.monotonic() + UP_S
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
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
    ours = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return {**kept, **ours, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((ADDRESS, 0)) as server:
        return int(server.getsockname()[1])
