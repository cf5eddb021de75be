"""The files in `cluster/`, as far as they can be checked without a cluster: by Ray, by schemas and linters, and against each other."""

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import symmetric_run

import fat_ray

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = [CLUSTER / name / "cluster.yaml" for name in ("local", "aws", "gcp")]
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
SCRIPTS = [CLUSTER / "launch-or-resume.sh", CLUSTER / "slurm" / "study.sbatch"]
DOCKERFILE = CLUSTER / "docker" / "Dockerfile"
SCHEMA = json.loads((ROOT / "tests" / "data" / "kuberay-1.6" / "schema.json").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
IMAGE = f"fat_ray:{fat_ray.__version__}-ray{PINS['ray']}"


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def dump(path: Path, data: object) -> Path:
    path.write_text(yaml.safe_dump(data))
    return path


def files() -> list[Path]:
    return [path for path in sorted(CLUSTER.rglob("*")) if path.is_file()]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT)


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[dev]'")
    return found


def accept_launcher(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` checks before it calls anyone, and two things that it lets pass: a name that is missing, a number that is none."""
    assert isinstance(config["cluster_name"], str)
    assert isinstance(config.get("max_workers", 0), int)
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.parent.name)
def test_ray_accepts_the_launcher_file(path: Path) -> None:
    prepared = accept_launcher(load(path))
    workers = {name: kind for name, kind in prepared["available_node_types"].items() if name != "head"}
    assert sum(kind["min_workers"] for kind in workers.values()) == 2  # a study is planned on what is there when it starts
    for command in (*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"]):
        assert "0.0.0.0" not in command
    assert any("--dashboard-host=127.0.0.1" in command for command in prepared["head_start_ray_commands"])


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize(
    "change",
    [
        {"max_worker": 3},
        {"max_workers": "many"},
        {"cluster_name": None},
        {"docker": {"imag": "x"}},
        {"auth": "someone"},
    ],
    ids=str,
)
def test_ray_refuses_a_launcher_file_with_a_mistake(path: Path, change: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, AssertionError, ValueError)):
        accept_launcher({**load(path), **change})


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.parent.name)
def test_a_launched_cluster_wants_the_token(path: Path) -> None:
    config = load(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [line for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    everywhere = "--env RAY_AUTH_MODE=token" in config.get("docker", {}).get("run_options", [])
    assert all(everywhere or "RAY_AUTH_MODE=token" in line for line in starts)


def complaint(manifest: object) -> str:
    found = best_match(Draft202012Validator(SCHEMA).iter_errors(manifest))
    return "" if found is None else found.message


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_kinds_have_such_fields(path: Path) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert complaint(load(path)) == ""


def place(manifest: Any, route: str) -> Any:
    for step in route.split("."):
        manifest = manifest[int(step) if step.isdigit() else step]
    return manifest


@pytest.mark.parametrize(
    ("route", "change"),
    [
        ("spec", {"shutdownAfterJobFinish": True}),
        ("spec", {"backoffLimit": "3"}),
        ("spec", {"submissionMode": "K8SJobMode"}),
        ("spec.rayClusterSpec", {"rayversion": "2.60.0"}),
        ("spec.rayClusterSpec.authOptions", {"mode": "tokens"}),
        ("spec.rayClusterSpec.headGroupSpec", {"rayStartParams": {"num-cpus": 0}}),
        ("spec.rayClusterSpec.workerGroupSpecs.0", {"minReplica": 1}),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec", {"runAsNonRoot": True}),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0", {"resource": {}}),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits", {"memory": "32 GB"}),
    ],
)
def test_a_mistake_in_a_manifest_is_found(route: str, change: dict[str, Any]) -> None:
    manifest = json.loads(json.dumps(load(CLUSTER / "kuberay" / "rayjob.yaml")))  # without the parts that YAML shares
    place(manifest, route).update(change)
    assert complaint(manifest) != ""


def clusters() -> list[dict[str, Any]]:
    return [load(CLUSTER / "kuberay" / "raycluster.yaml")["spec"], load(CLUSTER / "kuberay" / "rayjob.yaml")["spec"]["rayClusterSpec"]]


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_pods_want_the_token_share_the_storage_and_have_no_rights() -> None:
    for cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "fat-ray-token"}
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert cluster["rayVersion"] == PINS["ray"]
        for pod in pods(cluster):
            (container,) = pod["containers"]
            assert container["image"] == IMAGE
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert {"name": "shared", "mountPath": "/mnt/shared"} in container["volumeMounts"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
    claim = load(CLUSTER / "kuberay" / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pods(clusters()[0])[0]["volumes"]} == {
        claim["metadata"]["name"]
    }


def test_both_kinds_make_the_same_cluster() -> None:
    first, second = clusters()
    assert first["workerGroupSpecs"] == second["workerGroupSpecs"]


def ray_start_options() -> list[tuple[Path, str]]:
    """Each option that a file gives to `ray start`, itself or through `ray symmetric-run`."""
    found = []
    for path in (*LAUNCHERS, SCRIPTS[1]):
        text = re.sub(r"\s*\\?\n +(?=--)", " ", path.read_text())
        for line in re.findall(r"ray (?:start|symmetric-run) (.*?)(?: -- |$)", text, flags=re.MULTILINE):
            found += [(path, option) for option in re.findall(r"(--[a-z-]+)", line)]
    return found


def test_options_of_ray_start_exist() -> None:
    known = {name for command in (start, symmetric_run) for parameter in command.params for name in parameter.opts}
    found = ray_start_options()
    assert {path for path, _ in found} == {*LAUNCHERS, SCRIPTS[1]}
    assert [(path.name, option) for path, option in found if option not in known] == []
    assert {"--min-nodes", "--include-dashboard", "--dashboard-host", "--autoscaling-config"} <= {option for _, option in found}


def test_yaml_is_tidy() -> None:
    done = run(tool("yamllint"), "--strict", "cluster")
    assert done.returncode == 0, done.stdout


def test_yamllint_finds_what_it_should(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("---\na: 1\na: 2\n")
    done = run(tool("yamllint"), "--strict", "-c", ROOT / ".yamllint", bad)
    assert (done.returncode, "duplication" in done.stdout) == (1, True)


def test_scripts_are_sound() -> None:
    done = run(tool("shellcheck"), *SCRIPTS)
    assert done.returncode == 0, done.stdout
    assert all(path.stat().st_mode & 0o111 for path in SCRIPTS)


def test_versions_equal_the_constraints() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = (requirement for line in wanted["dependencies"] if (requirement := Requirement(line)).name == "ray")
    assert ray.specifier.contains(PINS["ray"])
    named = {path: re.findall(r"rayproject/ray:([\w.-]+\w)", path.read_text()) for path in files()}
    assert [tag for tags in named.values() for tag in tags] != []
    for path, tags in named.items():
        assert [tag for tag in tags if tag != f"{PINS['ray']}-py311"] == [], path
    for path in files():
        for name, version in re.findall(r"\b([A-Za-z][\w-]*)==([\w.]+)", path.read_text()):
            assert PINS.get(name, version) == version, f"{path}: {name}"
        for image in re.findall(r"\bfat_ray:[\w.-]+", path.read_text()):
            assert image == IMAGE, path


def test_the_image_is_pinned_and_without_root() -> None:
    lines = [line.strip() for line in DOCKERFILE.read_text().replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    words = [line.split() for line in lines]
    assert [line for line in words if line[0] == "FROM"] == [["FROM", f"rayproject/ray:{PINS['ray']}-py311"]]
    assert [line[0] for line in words if line[0] in ("ADD", "SHELL")] == []
    users = [line[1] for line in words if line[0] == "USER"]
    assert users[-1] == "1000:100"  # a number: Kubernetes cannot tell that a name is not root
    after = words[[line[0] for line in words].index("USER", [line[0] for line in words].index("USER") + 1) :]
    assert all("--chown=1000:100" in line for line in after if line[0] == "COPY")
    installs = [line for line in lines if "pip install" in line]
    assert installs != []
    assert all("-c constraints.txt" in line for line in installs)
    sources = [part for line in words if line[0] == "COPY" for part in line[1:-1] if not part.startswith("--")]
    assert all((ROOT / source).exists() for source in sources)
    allowed = [line[1:] for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(allowed) == sorted(sources)


def commands(readme: Path) -> list[list[str]]:
    """The commands of each section "Three commands" of a README, without comments and continued lines joined."""
    text = readme.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^#+ Three commands.*?```sh\n(.*?)```", text, flags=re.MULTILINE | re.DOTALL)
    return [[line.split("  #")[0] for line in block.splitlines() if line and not line.startswith("#")] for block in blocks]


@pytest.mark.parametrize("name", ["docker", "local", "aws", "gcp", "kuberay", "slurm"])
def test_a_readme_has_three_commands_about_files_that_exist(name: str) -> None:
    found = commands(CLUSTER / name / "README.md")
    assert [len(block) for block in found] == [3] * len(found)
    assert len(found) == (2 if name == "kuberay" else 1)
    for line in (line for block in found for line in block):
        for path in re.findall(r"(?<![\w./-])(?:cluster|studies)/[\w./-]+", line):
            assert (ROOT / path).exists(), line


@pytest.mark.parametrize("word", ["storage", "secret", "token", "spot", "gpu"])
@pytest.mark.parametrize("name", ["local", "aws", "gcp", "kuberay", "slurm"])
def test_a_readme_explains(name: str, word: str) -> None:
    headings = re.findall(r"^#+ .*|^\*\*[^*]+\*\*", (CLUSTER / name / "README.md").read_text(), flags=re.MULTILINE)
    assert any(word in heading.lower() for heading in headings), headings


REGISTRIES = re.compile(r"\b(?:docker\.io|ghcr\.io|quay\.io|gcr\.io|pkg\.dev|\w*\.?azurecr\.io|ecr\.[\w.-]*amazonaws\.com|pypi\.org)\b")


def test_no_registry_is_named() -> None:
    assert [f"{path}: {hit}" for path in files() for hit in REGISTRIES.findall(path.read_text())] == []
