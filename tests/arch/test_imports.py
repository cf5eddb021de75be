"""What importing a room loads, seen in a fresh interpreter; the layers themselves are import-linter's (`make check`)."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "polars", "wandb", "pyarrow", "optuna", "altair", "scipy", "pandas")


def loaded_by(code: str) -> set[str]:
    """Names of the heavy packages that are loaded after running `code`."""
    script = f"{code}\nimport sys\nprint('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50, cwd=ROOT)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("loaded:")]
    return set(line.split()[1:])


def test_sees_what_is_loaded() -> None:
    assert "pyarrow" in loaded_by("import pyarrow")


@pytest.mark.parametrize("arguments", [["--help"], ["launch", "--help"], ["run", "--help"], ["compare", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    run = "from fat_ray.__main__ import main\ntry:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    assert loaded_by(f"import sys\nsys.argv[1:] = {arguments!r}\n{run}") == set()


def test_package_itself_loads_nothing_heavy() -> None:
    assert loaded_by("import fat_ray, fat_ray.errors, fat_ray.events") == set()


def test_specification_loads_nothing_heavy() -> None:
    assert loaded_by("import fat_ray.spec.study, fat_ray.spec.load") == set()


@pytest.mark.parametrize("module", ["compare", "report", "status", "replay", "replay_check"])
def test_analysis_loads_neither_torch_nor_ray_nor_wandb(module: str) -> None:
    assert not loaded_by(f"import fat_ray.analysis.{module}") & {"torch", "ray", "wandb", "optuna"}


ADAPTERS = {"huggingface", "lightning"}
"""For other trainers, which import them."""
PARTS = {"annotated_types", "mpmath", "sympy", f"_sysconfigdata__{sys.platform}_{sysconfig.get_config_var('MULTIARCH')}"}
"""What pydantic, torch and Python are made of, loaded late."""


def test_statistics_and_freezing_need_torch_numpy_and_pydantic_alone() -> None:
    """They load nothing that is neither Python's own nor loaded by those three."""
    files = [path for room in ("fisher", "freeze") for path in (ROOT / "fat_ray" / room).glob("*.py") if path.stem not in ADAPTERS]
    names = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    script = f"""
import importlib, sys, numpy.random, pydantic, torch, torch.distributed
before = set(sys.modules)
for name in {names!r}:
    importlib.import_module(name)
known, now = ({{name.partition(".")[0] for name in names}} for names in (before, sys.modules))
print("more:", *sorted(now - known - sys.stdlib_module_names - {PARTS!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50, cwd=ROOT)
    assert done.stdout.split() == ["more:", "fat_ray"]
