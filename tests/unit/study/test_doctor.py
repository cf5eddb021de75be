import json
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fat_ray.errors import ResourceError
from fat_ray.records.mirror.access import has_key
from fat_ray.study import doctor
from fat_ray.study.doctor import GIB, Check, as_json, as_text, available_memory


@pytest.mark.timeout(30)  # imports torch
def test_this_machine_passes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    checks = doctor.examine(tmp_path / "out", {})
    assert [check for check in checks if check.verdict == "fail"] == []
    assert {"python", "torch", "ray", "torch-backend", "weights", "memory", "loopback", "out", "disk"} <= {check.name for check in checks}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("requirement", "verdict", "found"),
    [
        ("pytest>=1", "ok", ""),
        ("pytest<1", "fail", "but <1 is supported"),
        ("no-such-package-of-this-name>=1", "fail", "not installed"),
    ],
)
def test_package(requirement: str, verdict: str, found: str) -> None:
    check = doctor._package(Requirement(requirement))
    assert check.verdict == verdict
    assert found in check.found
    assert ("pip install" in check.mend) == (verdict == "fail")


@pytest.mark.parametrize(("version", "verdict"), [("3.11.0", "ok"), ("3.14.0rc1", "ok"), ("3.10.9", "fail")])
def test_python(version: str, verdict: str) -> None:
    assert doctor._python(">=3.11", version).verdict == verdict


def test_memory_is_what_the_kernel_says_or_what_the_container_leaves(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:  3145728 kB\n")
    assert available_memory(meminfo, tmp_path) == 3 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert available_memory(meminfo, tmp_path) == 3 * GIB
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert available_memory(meminfo, tmp_path) == GIB


def test_little_memory_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 1.0 * GIB)
    assert doctor._memory().verdict == "warn"


def test_place_for_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise ResourceError("too long")

    monkeypatch.setattr(doctor, "short_directory", lambda: tmp_path)
    assert doctor._ray_directory().verdict != "fail"
    monkeypatch.setattr(doctor, "short_directory", refuse)
    check = doctor._ray_directory()
    assert (check.verdict, check.found) == ("fail", "too long")
    assert "TMPDIR" in check.mend


def test_address_in_the_environment_is_pointed_out() -> None:
    assert doctor._ray_address({}).mend == ""
    check = doctor._ray_address({"RAY_ADDRESS": "10.0.0.1:6379"})
    assert "10.0.0.1:6379" in check.found
    assert "RAY_ADDRESS" in check.mend


def test_out_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor._writable(tmp_path / "file" / "out").verdict == "fail"
    assert doctor._writable(tmp_path / "new" / "out").verdict == "ok"


def test_wandb_key_is_found_and_never_shown(tmp_path: Path) -> None:
    secret = "s3cret" * 7
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {secret}\n")
    assert has_key({"WANDB_API_KEY": secret})
    assert has_key({"NETRC": str(netrc)})
    assert not has_key({"NETRC": str(netrc), "WANDB_BASE_URL": "https://wandb.example.org"})
    assert not has_key({"NETRC": str(tmp_path / "none")})
    check = doctor._wandb({"WANDB_API_KEY": secret, "WANDB_MODE": "offline"})
    assert "a key is present" in check.found
    assert secret not in as_text([check]) + as_json([check])


def test_broken_netrc_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine\n")
    assert not has_key({"NETRC": str(tmp_path / "netrc")})


def test_text_and_json() -> None:
    checks = [Check("a", "ok", "fine"), Check("long-name", "fail", "broken", "mend it")]
    assert as_text(checks) == "ok    a          fine\nfail  long-name  broken\n                 -> mend it"
    assert json.loads(as_json(checks))[1] == {"name": "long-name", "verdict": "fail", "found": "broken", "mend": "mend it"}
