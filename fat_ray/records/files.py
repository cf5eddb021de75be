"""Files that are whole or absent: written beside their place under another name, synced, then renamed."""

import errno
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fat_ray.errors import RecordError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Writes a file so that a reader, or a crash at any moment, finds all of `data` or no change at all.

    The temporary name is fixed (`.<name>.tmp`), so that what a killed writer left is overwritten by the next one. Only one process
    may write a path.

    Raises:
        RecordError: The file cannot be written, for example because no space is left; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, data)
        # The directory is not synced: after a power cut the newest file may be absent, which a reader can bear, but never torn.
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RecordError(f"cannot write {path} ({len(data)} bytes): {explain(error, path)}") from error
        raise


def explain(error: OSError, path: Path) -> str:
    """What an operating system error at `path` means, with the free space when there is too little of it."""
    reason = error.strerror or str(error)
    if error.errno not in _NO_SPACE:
        return reason
    return f"{reason}: {mebibytes(free_bytes(path))} free; make space or choose another output directory"


def free_bytes(path: Path) -> int:
    """Free bytes where `path` is, or would be."""
    existing = next(candidate for candidate in (path, *path.absolute().parents) if candidate.exists())
    return shutil.disk_usage(existing).free


def mebibytes(count: int) -> str:
    """A number of bytes for people, such as ``3.5 MiB``."""
    return f"{count / 2**20:.1f} MiB"


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Writes a file and waits until it is on the disk; a crash on the way may leave a part of it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(paths: Sequence[Path]) -> None:
    """Waits until all of several files or directories are on the disk, which writes many in the time of a few."""
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(sync, paths))


def adopt_mode(path: Path) -> None:
    """Gives a file the permissions of its directory, but for execution: safetensors writes files that only their owner may read."""
    path.chmod(path.parent.stat().st_mode & 0o666)
