import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(30)  # starts an interpreter


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        ("fat_ray.analysis.compare", ("torch", "ray", "optuna", "wandb", "altair", "vl_convert", "jinja2")),
        ("fat_ray.analysis.render", ("torch", "ray", "optuna", "wandb", "altair", "vl_convert")),
        ("fat_ray.analysis.report", ("torch", "ray", "optuna", "wandb")),
    ],
)
def test_importing_analysis_loads_nothing_heavy(module: str, kept_out: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {kept_out!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
