"""One local Ray for all tests that need it: two CPUs, a GPU that it only believes in, loopback only, its files in a directory of its own.

It is gone at the end."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
NUM_CPUS, NUM_GPUS = 2, 1


@pytest.fixture(scope="session")
def ray_session() -> Iterator["RaySession"]:
    """Starts Ray on first use; at the end shuts it down and fails if a process is left."""
    from fat_ray.study.environment import LOCAL_ENV, TUNE_ENV
    from fat_ray.train.run import TRAIN_ENV

    variables = {**TRAIN_ENV, **TUNE_ENV, **LOCAL_ENV, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield from _session(variables)


def _session(variables: Mapping[str, str]) -> Iterator["RaySession"]:
    import ray

    temporary = tempfile.mkdtemp(prefix="fr-", dir="/tmp")  # short: sockets lie below it
    before = _children()
    context = ray.init(
        address="local",
        num_cpus=NUM_CPUS,
        num_gpus=NUM_GPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200 * 2**20,
        _temp_dir=temporary,
        runtime_env={"env_vars": dict(variables)},
    )
    processes = _children() - before
    try:
        yield RaySession(context.address_info["address"])
    finally:
        for process in processes:  # Ray's servers; workers are children of one of them
            with suppress(psutil.NoSuchProcess):
                processes = processes | set(process.children(recursive=True))
        ray.shutdown()
        _, left = psutil.wait_procs(processes, timeout=30)
        shutil.rmtree(temporary, ignore_errors=True)
        assert left == [], f"Ray left processes behind: {left}"


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@dataclass(frozen=True)
class Usage:
    """What a cluster has given out; two of them are equal when nothing leaked in between."""

    free_cpus: float
    free_gpus: float
    placement_groups: tuple[str, ...]
    actors: tuple[str, ...]


class RaySession:
    """The running Ray, and what it has given out.

    Attributes:
        address: Of its GCS, such as ``127.0.0.1:6379``.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def usage(self) -> Usage:
        """Free CPUs and GPUs, and ids of placement groups and actors that are alive; but for what Ray keeps one of for ever."""
        import ray
        from ray.util import placement_group_table

        groups = [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]
        actors = [name for name, actor in live_actors().items() if "AutoscalingCoordinator" not in actor]
        free = ray.available_resources()
        return Usage(free.get("CPU", 0.0), free.get("GPU", 0.0), tuple(sorted(groups)), tuple(sorted(actors)))


def live_actors() -> dict[str, str]:
    """Id to class name of the actors of this Ray that have not died. Reads the GCS: the public list needs a dashboard."""
    from ray._private.state import actors

    found: Mapping[str, Mapping[str, Any]] = actors()
    return {name: str(actor["ActorClassName"]) for name, actor in found.items() if actor["State"] != "DEAD"}
