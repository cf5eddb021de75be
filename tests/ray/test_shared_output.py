"""A cluster in which one node has a directory of its own where the study's should be."""

import subprocess
from pathlib import Path

import pytest

from tests.support.nodes import cluster
from tests.support.tiny_studies import BOUND_S, equal_trials, launched

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600, func_only=False)]


def test_a_study_on_several_nodes_is_refused_when_one_does_not_see_its_directory(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the privilege to make mount namespaces")
    with cluster() as nodes:
        nodes.add(2, private=tmp_path)
        with launched(equal_trials("warm"), nodes.address, tmp_path) as driver:
            assert driver.wait(BOUND_S) == 2
    log = (tmp_path / "tiny.log").read_text()
    assert f"fat-ray: output = {tmp_path / 'tiny'}: node " in log, log
    assert "does not see it: on several nodes the directory must lie on a file system that all of them share" in log
    assert "Traceback" not in log
    assert not (tmp_path / "tiny").exists()  # nothing was started, so the same command may be given again
