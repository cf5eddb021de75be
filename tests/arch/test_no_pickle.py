"""No code of the package loads pickles: what lies in a study's directory cannot run code that way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fat_ray"
LOADERS = {"pickle", "cloudpickle", "joblib", "dill", "marshal", "shelve"}

CODE = [
    "pickle.load(f)",
    "from pickle import load",
    "import cloudpickle as c",
    "torch.load(p)",
    "np.load(p, allow_pickle=True)",
    "joblib.load(p)",
]


def _faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LOADERS:
            yield f"from {node.module} import in line {node.lineno}"  # under its own name a loader would not be noticed
        if isinstance(node, ast.Import):
            renamed = [alias.name for alias in node.names if alias.asname and alias.name.partition(".")[0] in LOADERS]
            yield from (f"import {name} under another name in line {node.lineno}" for name in renamed)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        call, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe_torch = call == "torch.load" and keywords.get("weights_only") != "True"
        if call.partition(".")[0] in LOADERS or unsafe_torch or keywords.get("allow_pickle", "False") != "False":
            yield f"{call} in line {node.lineno}"


def test_the_package_loads_no_pickles() -> None:
    assert {path.name: found for path in PACKAGE.rglob("*.py") if (found := list(_faults(ast.parse(path.read_text()))))} == {}


@pytest.mark.parametrize("code", CODE)
def test_loaders_are_noticed(code: str) -> None:
    assert list(_faults(ast.parse(code)))
