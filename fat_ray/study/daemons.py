"""Ray's servers on this machine: out of reach of signals that are meant for the driver, and watched, since a study without them is lost.

Uses internals of Ray; where they are not as expected, the servers stay in the driver's group of processes, and nobody watches.
"""

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def own_session() -> Iterator[None]:
    """Ray's servers that are started within get a session of their own.

    Whoever signals the whole group of the driver would end them before any run could save a checkpoint. They still end with the driver,
    however that ends: Ray asks the kernel to see to it.
    """
    from ray._private import services

    original = getattr(services, "ConsolePopen", None)
    if original is None:
        yield
        return

    class Apart(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, start_new_session=True, **kwargs)

    services.ConsolePopen = Apart
    try:
        yield
    finally:
        services.ConsolePopen = original


@contextmanager
def tied_to_servers(directory: Path, stopped_by: Callable[[], int | None]) -> Iterator[None]:
    """Within, the end of one of the servers that this process has started ends the process, as soon as it happens.

    Ray would let it wait for a minute and then end it without a word, and until then report to the study that its trials died. So nothing
    is concluded, and the study goes on as after a kill.

    Args:
        directory: The study's directory, for the message.
        stopped_by: The signal that asked this process to end, if there was one: it tells the exit code.
    """
    handles = _handles()
    over, wake = os.pipe()
    poll = select.poll()
    for handle in (over, *handles):
        poll.register(handle)

    def watch() -> None:
        if over not in dict(poll.poll()):
            _give_up(directory, stopped_by())

    thread = threading.Thread(target=watch, name="fat_ray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(wake)
        thread.join()
        for handle in (over, *handles):
            os.close(handle)


def _handles() -> list[int]:
    """A descriptor for each server, which can be read once the server has ended; none where the system has no such thing."""
    import ray

    node = getattr(ray._private.worker, "_global_node", None)  # noqa: SLF001 - there is no public name
    processes = getattr(node, "all_processes", {})
    handles: list[int] = []
    for kind in ("gcs_server", "raylet"):
        for info in processes.get(kind, ()):
            with suppress(AttributeError, OSError):
                handles.append(os.pidfd_open(info.process.pid))
    return handles


def _give_up(directory: Path, stopped_by: int | None) -> None:
    sys.stderr.write(f"\nfat-ray: Ray's servers on this machine have ended; go on with: fat-ray resume {directory}\n")
    sys.stderr.flush()
    os._exit(1 if stopped_by is None else 128 + stopped_by)
