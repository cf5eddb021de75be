"""A study sent to a real head with a job server and token authentication, whose sender goes away in the middle."""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from fat_ray.records.driver import DONE, STOPPED, read_report
from tests.support.nodes import ADDRESS, environment, free_port
from tests.support.tiny_studies import BOUND_S, equal_trials, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600, func_only=False)]

TOKEN = secrets.token_hex(32)


class Head:
    """A head that wants a token, and a user beside it.

    Attributes:
        url: Of its dashboard.
        variables: Of its user, who has the token.
    """

    def __init__(self, directory: Path) -> None:
        self.url = f"http://{ADDRESS}:{free_port()}"
        (directory / "token").write_text(TOKEN)
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the job calls python
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(directory / "token"), "HOME": str(directory)}
        self.variables = {**environment(), **token, "PATH": programs}
        own = {"port": free_port(), "dashboard-port": self.url.rpartition(":")[2], "dashboard-agent-listen-port": free_port()}
        ports = (f"--dashboard-host={ADDRESS}", *(f"--{name}={port}" for name, port in own.items()))  # another Ray may have the usual ones
        where = (f"--temp-dir={directory / 'r'}", f"--node-ip-address={ADDRESS}", "--min-worker-port=0", "--max-worker-port=0")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", *ports, *where]
        with (directory / "head.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--object-store-memory=100000000"], stdout=log, stderr=subprocess.STDOUT, env=self.variables
            )
        wait_until(self._answers, "the dashboard answers")

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            return b"token" in urlopen(f"{self.url}/api/authentication_mode", timeout=5).read()
        except (URLError, OSError):
            return False

    def close(self) -> None:
        """Ends all its processes."""
        everyone = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        for process in everyone:
            process.kill()
        psutil.wait_procs(everyone, timeout=30)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp", ignore_cleanup_errors=True) as directory:  # short: sockets lie below it
        made = Head(Path(directory))
        try:
            yield made
        finally:
            made.close()


def start(head: Head, *arguments: str, log: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fat_ray", "submit", *arguments, "--address", head.url]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**head.variables, **(variables or {})})


def test_a_wrong_token_is_refused_in_one_line(head: Head, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert start(head, "--follow", "x", log=log, variables={"RAY_AUTH_TOKEN": "wrong"}).wait(BOUND_S) == 2
    assert log.read_text().startswith(f"fat-ray: the cluster at {head.url} refuses the token:")
    assert log.read_text().count("\n") == 1


def test_a_study_goes_on_without_its_sender_and_is_stopped_and_resumed_from_outside(head: Head, tmp_path: Path) -> None:
    study, log, out = tmp_path / "tiny.yaml", tmp_path / "log", tmp_path / "out"
    study.write_text(equal_trials("warm", slow_s=0.2, train={"steps": 60}, budget={"trials": 2}).model_dump_json())  # JSON is YAML
    sender = start(head, str(study), "--out", str(out), log=log)
    wait_until(lambda: sender.poll() is not None or "the job goes on without this command" in log.read_text(), "the study is sent")
    sender.send_signal(signal.SIGKILL)  # the laptop is closed
    sender.wait()
    first = log.read_text()
    job = re.search(r"fat-ray submit --follow (\S+) ", first)
    assert job is not None, first
    assert "sent with bench, tests" in first  # the package of the task, and what that imports from beside it
    wait_until(lambda: any(out.glob("tiny/records/steps/*/*.parquet")), "the study trains")

    follower = start(head, "--follow", job[1], log=log)
    wait_until(lambda: log.stat().st_size > 0, "what it wrote is shown")
    follower.send_signal(signal.SIGINT)
    assert follower.wait(BOUND_S) == 130
    assert log.read_text().endswith(
        f"\nfat-ray: no longer followed; the job goes on: fat-ray submit --follow {job[1]} --address {head.url}\n"
    )

    stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", job[1], "--address", head.url]
    subprocess.run(stop, env=head.variables, check=True, capture_output=True, timeout=BOUND_S)
    report = read_report(out / "tiny")
    assert report is not None
    assert report.state == STOPPED  # and not killed: it came to its last word
    assert (out / "tiny" / "checkpoints").exists()

    assert start(head, str(study), "--out", str(out), "--resume", log=log).wait(BOUND_S) == 0, log.read_text()
    assert f"study    {out / 'tiny'}" in log.read_text()
    status = subprocess.run([sys.executable, "-m", "fat_ray", "status", str(out / "tiny")], capture_output=True, text=True, check=True)
    assert f"tiny  {DONE}" in status.stdout
    assert "2 of 2 done (2 completed)" in status.stdout
    written = [path for path in (out, Path(head.variables["HOME"]) / "r") for path in path.rglob("*") if path.is_file()]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
