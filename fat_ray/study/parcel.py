"""What of a study goes to a cluster: its file, and the code of its author that it names, with what that imports from beside it."""

import ast
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from fat_ray.errors import InputError, SpecError
from fat_ray.records.files import mebibytes
from fat_ray.records.redact import secrets_in
from fat_ray.spec.load import LoadedStudy
from fat_ray.spec.space import Choice
from fat_ray.spec.study import StudySpec, as_json
from fat_ray.spec.task import DATA_PATHS, EMBEDDED

STUDY_FILE = "study.yaml"
MAX_BYTES = 100 * 2**20
"""More than that belongs on the file system that all nodes share."""

_REFERENCE = re.compile(r"([A-Za-z_]\w*)[\w.]*:[A-Za-z_]\w*")
_INSTALLED = {"site-packages", "dist-packages"}


def pack(loaded: LoadedStudy, overrides: Sequence[str], target: Path) -> list[str]:
    """Copies the study file and local modules into a directory that becomes the job's working directory.

    Args:
        loaded: The study.
        overrides: Settings that replace those of the file.
        target: An empty directory.

    Returns:
        Names of the modules and packages that were copied.

    Raises:
        InputError: A module is not here, the data is not on the cluster, or all together is too large.
        SpecError: The study holds a secret, which many could read on the cluster.
    """
    problems = secrets_in(as_json(loaded.spec), loaded.text)
    if problems:
        raise SpecError(f"study {loaded.spec.name}", problems)
    _refuse_local_data(loaded.spec, "\n".join([loaded.text, *overrides]))
    (target / STUDY_FILE).write_text(loaded.text)
    sources = {path.name: path for field, root in _references(loaded.spec) for path in _with_neighbours(_locate(field, root))}
    for name, path in sources.items():
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=_unwanted)
        else:
            shutil.copyfile(path, target / name)
    _refuse_too_much(target)
    return sorted(sources)


def _references(spec: StudySpec) -> Iterator[tuple[str, str]]:
    """Field and root module of each `module:function` that the study names, without those of fat_ray."""
    named: list[tuple[str, object]] = [("task.name", spec.task.name), ("freeze.policy", spec.freeze.policy)]
    for baseline in spec.references:
        named += [(f"baselines.{baseline.name}", value) for key, value in baseline.changes.items() if key in ("freeze.policy", "task.name")]
    for key, values in spec.search.items():
        if key in ("freeze.policy", "task.name") and isinstance(values, Choice):
            named += [(f"search.{key}", value) for value in values.choices]
    for field, value in named:
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is not None and match[1] != "fat_ray":
            yield f"{field} = {value}", match[1]


def _locate(field: str, root: str) -> Path | None:
    """The file or directory of a module; None when it is installed, so that the cluster must have it as well.

    Raises:
        InputError: It is not here.
    """
    search = [str(Path.cwd()), *(entry for entry in sys.path if entry)]
    found = None if root in sys.stdlib_module_names else PathFinder.find_spec(root, search)
    if found is None:
        raise InputError(f"{field}: there is no module {root} in {Path.cwd()} or on PYTHONPATH, so it cannot be sent")
    places = list(found.submodule_search_locations or [])
    path = Path(places[0]) if places else Path(str(found.origin))
    return None if _INSTALLED & set(path.parts) else path


def _with_neighbours(module: Path | None) -> Iterator[Path]:
    """A module, and whatever it imports that lies beside it."""
    waiting, seen = [] if module is None else [module], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        yield path
        for name in _imported(path):
            beside = (path.parent / f"{name}.py", path.parent / name)
            waiting += [found for found in beside if found.is_file() or (found / "__init__.py").is_file()]


def _imported(path: Path) -> set[str]:
    """Root names of what the Python files of a module import, wherever the statement stands."""
    roots = set()
    for file in [path] if path.is_file() else path.rglob("*.py"):
        try:
            nodes = list(ast.walk(ast.parse(file.read_bytes())))
        except (SyntaxError, ValueError, OSError):
            continue  # whoever imports it is told more
        roots |= {alias.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        roots |= {(node.module or "").partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return roots - {"", "fat_ray"}


def _unwanted(directory: str, names: list[str]) -> list[str]:
    """Hidden files, which may hold secrets, links, which may lead anywhere, and what Python makes by itself."""
    return [name for name in names if name.startswith(".") or name == "__pycache__" or Path(directory, name).is_symlink()]


def _refuse_local_data(spec: StudySpec, written: str) -> None:
    """A path was made absolute when the file was read: one that was not written so starts at a directory of this machine."""
    for field in DATA_PATHS:
        path = getattr(spec.task, field, None)
        if path not in (None, EMBEDDED) and str(path) not in written:
            raise InputError(
                f"task.{field} = {path}: data is not sent; put it on the file system that the nodes share, and give its absolute path there"
            )


def _refuse_too_much(target: Path) -> None:
    sizes = {path: sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()) for path in target.iterdir()}
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise InputError(
            f"{largest.name} has {mebibytes(sizes[largest])}, at most {mebibytes(MAX_BYTES)} are sent: put data on the file system that "
            "the nodes share"
        )
