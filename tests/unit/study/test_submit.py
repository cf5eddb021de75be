"""Sending a study and following its job, with a cluster that only pretends."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fat_ray.errors import InputError, ResourceError
from fat_ray.spec.load import LoadedStudy, load_study
from fat_ray.study import submit as module
from fat_ray.study.submit import JobEnd, connect, follow, has_token, submit

BREAK = "the connection breaks here"


class FakeClient:
    """A cluster.

    Args:
        tails: What each connection to the log gives.
        statuses: What each question after the job gets; the last one for ever.
        exit_code: Of the job.
    """

    def __init__(self, tails: list[list[str]], statuses: list[str], exit_code: int | None = 0) -> None:
        self._tails, self._statuses, self._exit_code = tails, statuses, exit_code
        self.jobs: list[dict[str, Any]] = []
        self.files: list[str] = []

    def submit_job(self, **job: Any) -> str:
        self.jobs.append(job)
        self.files = sorted(path.name for path in Path(job["runtime_env"]["working_dir"]).iterdir())
        return str(job["submission_id"])

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        if status == BREAK:
            raise ConnectionError
        return SimpleNamespace(status=status, driver_exit_code=self._exit_code, message="its driver\ndied")

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for piece in self._tails.pop(0) if self._tails else [BREAK]:
            if piece == BREAK:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield piece


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedStudy:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").touch()
    (tmp_path / "mine.yaml").write_text("name: mine\ntask: {name: 'own:make'}\n")
    return load_study(tmp_path / "mine.yaml")


def followed(client: FakeClient, gone_s: float = 10.0) -> tuple[str, JobEnd]:
    written: list[str] = []
    end = follow(client, "mine-1", written.append, gone_s=gone_s)
    return "".join(written), end


def test_a_study_is_sent_with_its_code_and_the_package(study: LoadedStudy) -> None:
    client = FakeClient([], ["RUNNING"])
    job, modules = submit(client, study, ["train.steps=4", "name=a b"], "/mnt/shared/results/")
    assert modules == ["own.py"]
    assert client.files == ["own.py", "study.yaml"]
    (sent,) = client.jobs
    assert sent["entrypoint"] == "python -m fat_ray launch study.yaml --out /mnt/shared/results --set=train.steps=4 '--set=name=a b'"
    assert (sent["submission_id"], job.startswith("mine-")) == (job, True)
    assert [Path(path).name for path in sent["runtime_env"]["py_modules"]] == ["fat_ray"]
    assert not Path(sent["runtime_env"]["working_dir"]).exists()


def test_an_interrupted_study_goes_on_as_a_new_job(study: LoadedStudy) -> None:
    client = FakeClient([], ["RUNNING"])
    submit(client, study, [], "/mnt/shared/results", resume=True)
    assert client.jobs[0]["entrypoint"] == "python -m fat_ray resume /mnt/shared/results/mine"


@pytest.mark.parametrize("out", ["out", "./out", "~/out", "s3://bucket/out"])
def test_a_directory_that_cannot_be_shared_is_refused(study: LoadedStudy, out: str) -> None:
    client = FakeClient([], ["RUNNING"])
    with pytest.raises(InputError, match=rf"output = {out}: must be an absolute path on a file system that all nodes"):
        submit(client, study, [], out)
    assert client.jobs == []


def test_a_cluster_that_takes_no_jobs_is_told_of_in_one_line(study: LoadedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise RuntimeError("Request failed with status code 500:\nno space")

    client = FakeClient([], ["RUNNING"])
    monkeypatch.setattr(client, "submit_job", refuse)
    with pytest.raises(ResourceError, match=r"^the cluster did not take the job: Request failed with status code 500: no space$"):
        submit(client, study, [], "/mnt/shared")


def test_a_head_that_is_not_ready_is_asked_again(study: LoadedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient([], ["RUNNING"])
    answers = iter([RuntimeError("status code 500: No available agent to submit job, please try again later.")])
    accept = client.submit_job

    def hesitate(**job: Any) -> str:
        for error in answers:
            raise error
        return accept(**job)

    monkeypatch.setattr(client, "submit_job", hesitate)
    assert submit(client, study, [], "/mnt/shared")[0] == client.jobs[0]["submission_id"]


def test_a_log_is_shown_to_its_end() -> None:
    assert followed(FakeClient([["one\n", "two\n"]], ["RUNNING", "SUCCEEDED"])) == ("one\ntwo\n", JobEnd(0, ""))


def test_after_a_broken_connection_nothing_is_shown_twice_or_left_out() -> None:
    tails = [["one\n", "tw", BREAK], ["one\ntwo\nth", BREAK], [BREAK], ["one\n", "two\n", "three\n"], ["one\ntwo\nthree\nfour\n"]]
    shown, end = followed(FakeClient(tails, ["RUNNING", BREAK, "SUCCEEDED"]))
    assert (shown, end.exit_code) == ("one\ntwo\nthree\nfour\n", 0)


@pytest.mark.parametrize(
    ("status", "code", "end"),
    [
        ("FAILED", 2, JobEnd(2, "")),
        ("FAILED", None, JobEnd(1, "the job failed: its driver died")),
        ("STOPPED", None, JobEnd(143, "the job was stopped")),
    ],
)
def test_a_job_ends_as_its_study_did(status: str, code: int | None, end: JobEnd) -> None:
    assert followed(FakeClient([[]], [status], code))[1] == end


def test_a_cluster_that_is_gone_is_given_up() -> None:
    with pytest.raises(ResourceError, match=r"for 0 s the cluster has not answered; if it lives, so does the job mine-1"):
        followed(FakeClient([[BREAK]], ["RUNNING"]), gone_s=0.0)


def test_a_job_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient([], ["RUNNING"])

    def unknown(job_id: str) -> None:
        raise RuntimeError("Request failed with status code 404")

    monkeypatch.setattr(client, "get_job_info", unknown)
    with pytest.raises(InputError, match=r"--follow mine-1: the cluster knows no such job"):
        followed(client)


@contextmanager
def server(status: int, body: bytes) -> Iterator[str]:
    """Something that answers every question in one way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "address",
    ["10.0.0.5:6379", "ray://10.0.0.5:10001", "auto", "http://", "http://host:port", "http://host:99999", "ftp://host", "http://[bad"],
)
def test_what_is_no_address_of_a_dashboard_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"^--address .*: must be the address of the cluster's dashboard, such as http://127.0.0.1:8265"):
        connect(address)


def test_a_missing_address_is_said() -> None:
    with pytest.raises(InputError, match=r"--address is missing: .* or set RAY_API_SERVER_ADDRESS"):
        connect(None)


def test_an_address_at_which_nobody_listens_is_said() -> None:
    with server(200, b"") as address:
        pass
    with pytest.raises(ResourceError, match=rf"^no cluster at {address}: Connection refused$"):
        connect(f"{address}/")


@pytest.mark.parametrize(("status", "body"), [(404, b""), (200, b"<html>"), (200, b"[]"), (200, b"{}"), (500, b"{}")])
def test_something_else_than_ray_is_told_apart(status: int, body: bytes) -> None:
    with server(status, body) as address, pytest.raises(ResourceError, match=rf"^{address} answers, but not as the dashboard of Ray"):
        connect(address)


def test_a_missing_token_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with server(200, b'{"authentication_mode": "token"}') as address, pytest.raises(ResourceError, match=r"wants its token: put it into"):
        connect(address)


def test_where_a_token_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not has_token({})
    assert has_token({"RAY_AUTH_TOKEN": "x"})
    assert not has_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    assert has_token({})


def test_another_version_of_ray_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"the cluster at a runs Ray 2.44.1, fat_ray needs 2\.60"):
        module._check_version("a", "2.44.1")
    module._check_version("a", "2.60.3")
