"""A Weights & Biases server on loopback: the part of the protocol that the real client was seen to use, and ways to misbehave.

GraphQL operations are told apart by their names, as the client of constraints.txt sends them; `Server.operations` records what was asked,
so that a test notices when another client asks for more.
"""

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ENTITY = "lab"
KEY = "k" * 40

_VIEWER = {
    "__typename": "User",
    "id": "VXNlcjox",
    "entity": ENTITY,
    "username": "tester",
    "name": "tester",
    "email": "tester@localhost",
    "admin": False,
    "flags": "{}",
    "deletedAt": None,
    "apiKeys": {"edges": []},
    "teams": {"edges": [{"node": {"id": "RW50OjE=", "name": ENTITY}}]},
}


@dataclass
class ServedRun:
    """What the server knows of a run.

    Attributes:
        attempts: How often it was begun; each time it starts empty.
        history: Rows, in the order in which they came.
        files: Uploaded files by path.
        artifacts: Files of each artifact by its name.
    """

    name: str
    project: str
    attempts: int = 0
    state: str = "running"
    display_name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    config: str = "{}"
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration without W&B's own part."""
        found = {key: entry["value"] for key, entry in json.loads(self.config).items()}
        return {key: value for key, value in found.items() if key != "_wandb"}

    def node(self) -> dict[str, Any]:
        """The run as GraphQL tells it."""
        return {
            "__typename": "Run",
            "id": f"run:{self.name}",
            "internalId": "1",
            "name": self.name,
            "displayName": self.display_name or self.name,
            "state": self.state,
            "group": self.group,
            "jobType": self.job_type,
            "tags": self.tags,
            "config": self.config,
            "rawconfig": self.config,
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": "2026-01-01T00:00:00",
            "description": None,
            "notes": None,
            "sweepName": None,
            "stopped": False,
            "historyLineCount": len(self.history),
            "historyKeys": {"lastStep": len(self.history) - 1, "keys": {}},
            "eventsLineCount": 0,
            "logLineCount": 0,
            "projectId": "1",
            "user": {"name": "tester", "username": "tester"},
            "project": project_node(self.project),
        }


def project_node(name: str) -> dict[str, Any]:
    return {"id": "UHJvajox", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==", "name": name, "entity": {"id": "RW50OjE=", "name": ENTITY}}


class Server(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1.

    Args:
        behaviour: ``good``; ``hang``: takes requests and never answers; ``reject``: knows no key.

    Attributes:
        runs: By id.
        operations: Names of the GraphQL operations that were asked for, and the other paths, with ids left out.
        is_hanging: May be set at any time.
    """

    daemon_threads = True

    def __init__(self, behaviour: str = "good") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rejects, self.is_hanging, self.closing = behaviour == "reject", behaviour == "hang", threading.Event()
        self.runs: dict[str, ServedRun] = {}
        self.operations: set[str] = set()
        self.unknown: list[str] = []
        self.uploading: dict[str, tuple[str, str]] = {}
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """Clients that end without a farewell are no trouble."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def by_name(self) -> dict[str, ServedRun]:
        return {run.display_name or name: run for name, run in self.runs.items()}

    def answer(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL request."""
        self.operations.add(operation)
        answer = _ANSWERS.get(operation)
        if answer is None:
            self.unknown.append(f"{operation} {sorted(variables)} {' '.join(query.split())}")
            return {}
        with self.lock:
            return answer(self, variables)


_ATTRIBUTES = {"displayName": "display_name", "groupName": "group", "jobType": "job_type", "tags": "tags", "config": "config"}
Answer = Callable[[Server, dict[str, Any]], dict[str, Any]]


def _server_info(_: Server, __: dict[str, Any]) -> dict[str, Any]:
    versions = {"max_cli_version": "0.99.0", "min_cli_version": "0.1.0"}
    info = {"cliVersionInfo": versions, "latestLocalVersionInfo": None, "features": []}
    return {"viewer": _VIEWER, "serverInfo": info, "QueryType": {"fields": []}, "MutationType": {"fields": []}}


def _upsert_bucket(server: Server, given: dict[str, Any]) -> dict[str, Any]:
    name, project = given["name"], given.get("project") or "uncategorized"
    known = server.runs.get(name)
    if known is None or (known.state != "running" and given.get("config")):  # a run that is begun again starts empty
        known = server.runs[name] = ServedRun(name, project, attempts=known.attempts + 1 if known else 1)
    for key, attribute in _ATTRIBUTES.items():
        if given.get(key) is not None:
            setattr(known, attribute, given[key])
    bucket = {**known.node(), "project": project_node(project)}
    return {"upsertBucket": {"bucket": bucket, "inserted": True}}


def _create_artifact(server: Server, given: dict[str, Any]) -> dict[str, Any]:
    asked = given.get("input") or given
    names = asked.get("artifactCollectionNames") or [asked["artifactCollectionName"]]
    run, name = asked["runName"], names[0]
    server.runs[run].artifacts[name] = {}
    identity = f"art:{run}:{name}"
    artifact = {"id": identity, "state": "PENDING", "artifactSequence": {"id": f"seq:{name}", "latestArtifact": None}}
    return {"createArtifact": {"artifact": artifact}}


def _upload(server: Server, kind: str, run: str, name: str) -> dict[str, Any]:
    path = f"/upload/{len(server.uploading)}"
    server.uploading[path] = (f"{kind}:{run}", name)
    return {
        "id": f"file:{name}",
        "name": name,
        "displayName": name,
        "uploadUrl": f"{server.url}{path}",
        "uploadHeaders": [],
        "uploadMultipartUrls": None,
        "storagePath": "x",
    }


def _manifest(server: Server, given: dict[str, Any], answer: str) -> dict[str, Any]:
    return {answer: {"artifactManifest": {"id": "man:1", "file": _upload(server, "manifest", "", "wandb_manifest.json")}}}


def _artifact_files(server: Server, given: dict[str, Any]) -> dict[str, Any]:
    files = given.get("artifactFiles") or given["input"]["artifactFiles"]
    edges = []
    for entry in files:
        identity = entry["artifactID"]
        edges.append({"node": {**_upload(server, "artifact", identity, entry["name"]), "artifact": {"id": identity}}})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _run_files(server: Server, given: dict[str, Any]) -> dict[str, Any]:
    files = [_upload(server, "run", given["run"], name) for name in given["files"]]
    return {"createRunFiles": {"runID": f"run:{given['run']}", "uploadHeaders": [], "files": files}}


_ARTIFACT = {"id": "art:1", "digest": "d", "description": "", "aliases": []}
_ANSWERS: dict[str, Answer] = {
    "UpsertBucket": _upsert_bucket,
    "RunResumeStatus": lambda _, given: {"model": {**project_node(given.get("project") or ""), "bucket": None}},
    "RunStoppedStatus": lambda *_: {"project": {"run": {"stopped": False}}},
    "ArtifactType": lambda *_: {"project": {"artifact": None}},
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": lambda server, given: _manifest(server, given, "createArtifactManifest"),
    "UpdateArtifactManifest": lambda server, given: _manifest(server, given, "updateArtifactManifest"),
    "CreateArtifactFiles": _artifact_files,
    "CommitArtifact": lambda *_: {"commitArtifact": {"artifact": _ARTIFACT}},
    "UseArtifact": lambda *_: {"useArtifact": {"artifact": _ARTIFACT}},
    "CreateRunFiles": _run_files,
}
for _name in ("Viewer", "ServerInfo", "ServerFeaturesQuery"):
    _ANSWERS[_name] = _server_info


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        body = self._body()
        kind, name = self.server.uploading.get(urlsplit(self.path).path, ("", ""))
        with self.server.lock:
            if kind.startswith("run:"):
                self.server.runs[kind.removeprefix("run:")].files[name] = body
            elif kind.startswith("artifact:art:"):
                run, artifact = kind.removeprefix("artifact:art:").split(":", 1)
                self.server.runs[run].artifacts[artifact][name] = body
        self.server.operations.add("PUT upload")
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.server.is_hanging:
            self.server.closing.wait()
            self.close_connection = True
            return
        if self.server.rejects:
            self._reply({"errors": [{"message": "invalid API key"}], "data": None}, 401)
            return
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            query = asked.get("query") or ""
            operation = asked.get("operationName") or _operation(query)
            self._reply({"data": self.server.answer(operation, query, asked.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self._stream(json.loads(body or b"{}"), unquote(self.path).split("/")[-2])
            self._reply({"exitcode": None, "limits": {}})
        else:
            self.server.unknown.append(f"POST {self.path}")
            self._reply({})

    def _stream(self, given: dict[str, Any], run: str) -> None:
        self.server.operations.add("POST file_stream")
        files = given.get("files") or {}
        with self.server.lock:
            served = self.server.runs[run]
            if "wandb-history.jsonl" in files:
                part = files["wandb-history.jsonl"]
                served.history[part["offset"] :] = [json.loads(line) for line in part["content"]]
            if "wandb-summary.json" in files:
                served.summary = json.loads(files["wandb-summary.json"]["content"][-1])
            if given.get("complete"):
                served.state = "crashed" if given.get("exitcode") else "finished"

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _reply(self, document: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _operation(query: str) -> str:
    """The name of a query, or else the first thing that it asks for."""
    found = re.search(r"(?:query|mutation)\s+(\w+)", query) or re.search(r"{\s*(\w+)", query)
    return found[1] if found else ""


@contextmanager
def serving(behaviour: str = "good") -> Iterator[Server]:
    """A server while the body runs."""
    server = Server(behaviour)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
