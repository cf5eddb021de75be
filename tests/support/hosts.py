"""Hosts on one machine: network namespaces behind one switch, each with an address, a name and a Ray node of its own.

Needs the privilege to make namespaces. What is made is gone at the end, and nothing of the machine's own network is touched.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.nodes import environment

NETWORK = "10.77.0."
UP_S = 90
"""How long a node may take to come up."""
# What runs on a host knows it by name only; the machine's own name would lead out of the namespace.
ENTER = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'


def missing() -> str:
    """Why hosts cannot be made here; empty when they can."""
    for tool in ("ip", "unshare", "hostname"):
        if shutil.which(tool) is None:
            return f"needs the command {tool}"
    probe = f"fr-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    if made.returncode:
        return f"needs the privilege to make network namespaces: {made.stderr.strip()}"
    inner = subprocess.run(["unshare", "--mount", "--uts", "hostname", "probe"], capture_output=True, text=True, check=False)
    return f"needs the privilege to name hosts: {inner.stderr.strip()}" if inner.returncode else ""


def ip(*arguments: str) -> str:
    """Runs `ip`."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Host:
    """One host.

    Attributes:
        address: Its IP address.
        name: Its host name.
    """

    def __init__(self, hosts: "Hosts", number: int) -> None:
        self._hosts, self.name, self.address = hosts, f"host{number}", f"{NETWORK}{number + 1}"
        self._space, self._port = f"{hosts.prefix}{number}", f"port{number}"
        ip("netns", "add", self._space)
        ip("link", "add", "eth0", "netns", self._space, "type", "veth", "peer", "name", self._port, "netns", hosts.switch)
        ip("-n", self._space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", self._space, "link", "set", link, "up")
        ip("-n", hosts.switch, "link", "set", self._port, "master", "switch", "up")

    def popen(self, command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
        """Starts a command here, in a process group of its own; what it prints goes to the log."""
        enter = ["ip", "netns", "exec", self._space, "unshare", "--mount", "--uts", "sh", "-c", ENTER, "sh", self.name, self._hosts.names]
        with log.open("ab") as file:
            return subprocess.Popen(
                [*map(str, enter), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**environment(), **self._hosts.auth, "HOME": str(self._hosts.home)},
                start_new_session=True,
            )

    def start_ray(self) -> None:
        """Starts a Ray node of one CPU, which is up when this returns: a head if no host has one yet."""
        log, head = self._hosts.directory / f"{self.name}.log", self._hosts.address
        where = ["--head", "--port=6379", "--include-dashboard=false"] if not head else [f"--address={head}"]
        place = f"--temp-dir={self._hosts.directory / self.name}"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where, f"--node-ip-address={self.address}", place]
        log.unlink(missing_ok=True)
        process = self.popen([*command, "--num-cpus=1", "--object-store-memory=100000000"], log)
        deadline_s = time.monotonic() + UP_S
        while "Ray runtime started" not in (text := log.read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < deadline_s, text
            time.sleep(0.1)
        self._hosts.address = head or f"{self.address}:6379"

    def processes(self, title: str = "") -> list[psutil.Process]:
        """What runs here, or those whose command line has this in it."""
        found = []
        for pid in ip("netns", "pids", self._space).split():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """All processes at once, as when the power goes; those that it takes long to die are waited for."""
        while left := self.processes():
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(left, timeout=1)

    def close(self) -> None:
        """Ends everything here, and the host itself."""
        self.kill()
        ip("netns", "del", self._space)


class Hosts:
    """Made by `hosts`.

    Attributes:
        all: The hosts.
        address: Of the Ray head, once a host has one.
        directory: Of their own files; the hosts also share this machine's file system.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self.directory, self.address = directory, ""
        self.prefix = f"fr-{os.getpid()}-"
        self.switch, self.names, self.home = f"{self.prefix}switch", directory / "names", directory / "home"
        self.auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.home.mkdir()
        self.names.write_text("127.0.0.1 localhost\n" + "".join(f"{NETWORK}{at + 1} host{at}\n" for at in range(number)))
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self.switch, "link", "set", "switch", "up")
        self.all = [Host(self, at) for at in range(number)]

    def close(self) -> None:
        """Ends all hosts."""
        for host in self.all:
            host.close()
        ip("netns", "del", self.switch)


@contextmanager
def hosts(number: int = 3) -> Iterator[Hosts]:
    """So many hosts without Ray, that end with the context."""
    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp", ignore_cleanup_errors=True) as directory:  # short: sockets lie below it
        made = Hosts(Path(directory), number)
        try:
            yield made
        finally:
            made.close()
