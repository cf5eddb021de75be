"""The rules of the house that no linter knows: sizes, empty package files, no path of one machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "fat_ray").rglob("*.py"))
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 8


def too_long_functions(source: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f"{node.name}: {lines} lines" for node in functions if (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES]


def crowded_constructors(source: str) -> list[str]:
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    constructors = [
        (owner.name, node) for owner in classes for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    return [name for name, node in constructors if len(node.args.args) - 1 + len(node.args.kwonlyargs) > MAX_PARAMETERS]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_small(module: Path) -> None:
    source = module.read_text()
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    assert too_long_functions(source) == []
    assert crowded_constructors(source) == []


def test_size_rules_can_fail() -> None:
    assert too_long_functions("def long():\n" + "    x = 1\n" * MAX_FUNCTION_LINES) == ["long: 61 lines"]
    assert crowded_constructors(f"class C:\n def __init__(self, {', '.join(f'a{n}' for n in range(9))}): ...") == ["C"]


def test_package_files_are_empty() -> None:
    packages = [path for path in MODULES if path.name == "__init__.py" and path.parent != ROOT / "fat_ray"]
    assert [str(path) for path in packages if path.read_text().strip()] == []
    body = ast.parse((ROOT / "fat_ray" / "__init__.py").read_text()).body
    shape = [type(node).__name__ for node in body]
    assert shape == ["Expr", "ImportFrom", "If", "Assign", "Assign", "FunctionDef"]  # a lazy `Study`, and the version


# `someone` is the user of examples.
MACHINE_PATH = re.compile(r"(?<![\w.:/}*-])/(?:(?:tmp|work|root|farm)/|(?:home|Users)/(?!someone/))")


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_no_path_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        if path == Path(__file__) or not path.is_file() or b"\0" in (content := path.read_bytes()):
            continue
        lines = content.decode(errors="replace").splitlines()
        found += [f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert found == []


@pytest.mark.parametrize(
    ("line", "hit"),
    [
        ('"/tmp/x"', True),
        ("see /root/.venv", True),
        ("/home/me/x", True),
        ("/home/someone/x", False),
        ("https://example.org/work/x", False),
        ("${HOME}/home/x", False),
    ],
)
def test_machine_path_pattern(line: str, hit: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is hit


def test_architecture_names_every_module_once() -> None:
    rooms = (ROOT / "docs" / "architecture.md").read_text().partition("## Rooms")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `([\w/]+\.py)`", rooms, flags=re.MULTILINE)
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "fat_ray")) for path in MODULES if path.name != "__init__.py")
