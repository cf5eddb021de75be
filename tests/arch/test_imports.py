"""What importing a room loads, seen in a fresh interpreter; the layers themselves are import-linter's (`make check`)."""

import subprocess
import sys
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


OWN_LOOP = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions
import numpy, pydantic, torch
owners = packages_distributions()
def packages(): return {owner for name in sys.modules for owner in owners.get(name.partition('.')[0], [])}
before = packages()
import fat_ray.fisher, fat_ray.freeze
from fat_ray.errors import SpecError
from fat_ray.freeze.freezer import Freezer
for package in (fat_ray.fisher, fat_ray.freeze):
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ('huggingface', 'lightning'):
            importlib.import_module(f'{package.__name__}.{module.name}')
model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 2))
optimizer = torch.optim.AdamW(model.parameters())
try:
    Freezer(model, optimizer, {'freeze': {'evry': 2}})
except SpecError as error:
    assert 'evry' in str(error)
freezer = Freezer(model, optimizer, {'fisher': {'every': 1}, 'freeze': {'every': 2, 'warmup_steps': 2, 'threshold': 0.0}})
for _ in range(5):
    freezer.arm(8)
    model(torch.randn(8, 4)).square().mean().backward()
    freezer.after_backward()
    optimizer.step()
assert freezer.entries.active_elements < freezer.entries.elements.sum()
print('more:', *sorted(packages() - before - {'fat-ray', 'annotated-types', 'mpmath', 'sympy'}))  # those packages' own, loaded later
"""


def test_a_loop_of_ones_own_needs_torch_numpy_and_pydantic_alone() -> None:
    done = subprocess.run([sys.executable, "-c", OWN_LOOP], capture_output=True, text=True, check=False, timeout=50, cwd=ROOT)
    assert done.stdout.split() == ["more:"], done.stdout + done.stderr
