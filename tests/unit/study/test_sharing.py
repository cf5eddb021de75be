"""Whether all nodes see a study's directory, with nodes that are directories of this machine."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fat_ray.errors import OutputError
from fat_ray.study.sharing import DRIVER, look, require_shared

Answers = Mapping[str, tuple[str, str]]


def on_nodes(**views: Callable[[Path], Path]) -> Callable[[Path], Answers]:
    """Nodes by name, each with where it finds what the driver knows under a path."""
    return lambda probe: {
        name: (f"10.0.0.{min(number, 1)}", look(str(view(probe)), name, 0.0)) for number, (name, view) in enumerate(views.items())
    }


def shared(probe: Path) -> Path:
    return probe


def test_nodes_that_share_the_directory_leave_nothing_in_it(tmp_path: Path) -> None:
    require_shared(tmp_path / "study", on_nodes(a=shared, b=shared), 0.0)
    assert [path.name for path in (tmp_path / "study").rglob("*")] == ["control"]


def test_a_single_node_has_nobody_to_share_with(tmp_path: Path) -> None:
    require_shared(tmp_path / "study", lambda _: {}, 0.0)
    assert list((tmp_path / "study" / "control").iterdir()) == []


def test_a_node_that_does_not_see_it_is_named_with_what_would_be_right(tmp_path: Path) -> None:
    nodes = on_nodes(a=shared, b=lambda probe: Path(f"{probe}-elsewhere"), c=shared)  # two on one machine
    with pytest.raises(OutputError, match=r"output = .*study: node 10\.0\.0\.1 does not see it: .* such as NFS; .* --out$"):
        require_shared(tmp_path / "study", nodes, 0.0)
    assert list((tmp_path / "study" / "control").iterdir()) == []


def test_a_directory_of_the_same_name_elsewhere_does_not_count(tmp_path: Path) -> None:
    def copied(probe: Path) -> Path:
        return Path(shutil.copytree(probe, tmp_path / "other"))

    with pytest.raises(OutputError, match=r"node 10\.0\.0\.0 has another directory of this name"):
        require_shared(tmp_path / "study", on_nodes(a=copied), 0.0)


def test_a_node_that_may_not_write_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / DRIVER).touch()
    assert look(str(tmp_path), "missing/answer", 0.0) == "cannot write there (No such file or directory)"


def test_a_node_that_cannot_run_fat_ray_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"node 10\.0\.0\.1 cannot run fat_ray \(No module named 'fat_ray'\)"):
        require_shared(tmp_path / "study", lambda _: {"a": ("10.0.0.1", "cannot run fat_ray (No module named 'fat_ray')")}, 0.0)
