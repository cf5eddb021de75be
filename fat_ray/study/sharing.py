"""Whether all nodes of a cluster see a study's directory: asked before anything starts, since a path alone does not tell."""

import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fat_ray.errors import OutputError

SEEN_S = 10.0
"""Longest wait for a file of another node: network file systems are not always up to date."""
ANSWER_S = 60.0
"""Longest wait for a node's answer, which needs a process there. One that says nothing is not held against the study."""
DRIVER = "driver"

Ask = Callable[[Path], Mapping[str, tuple[str, str]]]
"""From the directory of the probe to: id of a node -> its address, and what is wrong there; nothing is, when that is empty."""


def look(probe: str, answer: str, wait_s: float = SEEN_S) -> str:
    """Runs on a node: what is wrong with the directory there; empty when the driver's file was seen and an answer written.

    Args:
        probe: The directory that the driver made.
        answer: Name of the file to write there.
        wait_s: Longest wait.
    """
    if not _appears(Path(probe, DRIVER), wait_s):
        return "does not see it"
    try:
        Path(probe, answer).touch()
    except OSError as error:
        return f"cannot write there ({error.strerror or error})"
    return ""


def ask_nodes(probe: Path) -> dict[str, tuple[str, str]]:
    """Has every other node of the connected cluster that can hold workers look."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here
    }
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(probe), node): node for node in nodes
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
    found = {asked[answer]: _answer(answer) for answer in answered}
    return {node: (nodes[node], problem) for node, problem in found.items() if problem is not None}


def _answer(reference: "ray.ObjectRef[str]") -> str | None:
    """What a node said; None when it left meanwhile, which is for others to judge."""
    try:
        return str(ray.get(reference))
    except RayTaskError as error:
        return f"cannot run fat_ray ({' '.join(str(error.cause or error).split())})"
    except RayError:
        return None


def require_shared(directory: Path, ask: Ask = ask_nodes, wait_s: float = SEEN_S) -> None:
    """Refuses a directory that only this node sees, if the cluster has others.

    Args:
        directory: The study's own, which exists.
        ask: Asks the other nodes.
        wait_s: Longest wait for what they wrote.

    Raises:
        OutputError: A node does not see the directory, or cannot write there; nothing was left behind.
    """
    probe = directory / "control" / f"probe-{secrets.token_hex(4)}"
    try:
        probe.mkdir(parents=True)
        (probe / DRIVER).touch()
        wrong = [(address, problem or _unseen(probe / node, wait_s)) for node, (address, problem) in ask(probe).items()]
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    told = [f"node {address} {problem}" for address, problem in sorted(wrong) if problem]
    if told:
        raise OutputError(
            f"output = {directory}: {'; '.join(told)}: on several nodes the directory must lie on a file system that all of them share "
            "under the same path, such as NFS; choose another one with --out"
        )


def _unseen(answer: Path, wait_s: float) -> str:
    return "" if _appears(answer, wait_s) else "has another directory of this name"


def _appears(path: Path, wait_s: float) -> bool:
    deadline_s = time.monotonic() + wait_s
    while not path.exists():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.1)
    return True
