"""What comes before any run: the checks that need no cluster, and the study's directory, which goes again if nothing was started in it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from fat_ray.errors import InputError
from fat_ray.records.manifest import create_study, discard_study
from fat_ray.records.mirror.driver import WandbMirror
from fat_ray.spec.check import substitute
from fat_ray.spec.run import RunSpec
from fat_ray.spec.space import Choice
from fat_ray.spec.study import StudySpec, as_json
from fat_ray.train.lease import sole_driver

if TYPE_CHECKING:
    from torch import nn


class Opened(NamedTuple):
    """What the checks before a run leave.

    Attributes:
        mirror: The mirror, which can write. Whoever uses it closes it.
        weights_bytes: Bytes of the state dict of the task's model.
    """

    mirror: WandbMirror
    weights_bytes: int


@contextmanager
def opened(
    spec: StudySpec, text: str, directory: Path, command: Sequence[str], *, kind: Literal["study", "run"] = "study"
) -> Iterator[Opened]:
    """Checks task, policies, directory and mirror, and makes the directory; bad input or Ctrl-C before the first run leaves nothing behind.

    Args:
        spec: The study.
        text: The study file as written.
        directory: The study's own directory; absent or empty.
        command: Arguments of the command line, for the manifest.
        kind: What the directory is for, for the manifest.

    Raises:
        InputError: The data, a policy, the directory or W&B cannot be used.
    """
    from fat_ray.freeze.policies import check_policy
    from fat_ray.tasks.registry import check_task

    model = check_task(spec.task)
    for run in _policies(spec):
        check_policy(model, run, spec.train.steps)
    create_study(directory, spec, text, command=command, kind=kind)
    try:
        mirror = WandbMirror(directory, spec.wandb)
        mirror.check_writable()
        with sole_driver(directory):
            yield Opened(mirror, _weights_bytes(model))
    except (InputError, KeyboardInterrupt):
        discard_study(directory)  # the same command may be given again
        raise


@contextmanager
def reopened(spec: StudySpec, directory: Path) -> Iterator[Opened]:
    """Checks task, directory and mirror of a study that is there, and keeps others from going on with it at the same time.

    Raises:
        InputError: The data, the directory or W&B cannot be used, or another process is at work in the directory.
    """
    from fat_ray.tasks.registry import check_task

    model = check_task(spec.task)
    with sole_driver(directory):
        mirror = WandbMirror(directory, spec.wandb)
        mirror.check_writable()
        yield Opened(mirror, _weights_bytes(model))


def _weights_bytes(model: "nn.Module") -> int:
    return sum(getattr(tensor, "nbytes", 0) for tensor in model.state_dict().values())


def _policies(spec: StudySpec) -> Iterator[RunSpec]:
    """A run for the base policy, or for each one that is searched, and for each baseline; random_matched has nothing to follow yet."""
    searched, run = spec.search.get("freeze.policy"), as_json(spec.run)
    names = searched.choices if isinstance(searched, Choice) else [spec.freeze.policy]
    changes = [{"freeze.policy": name} for name in names] + [baseline.changes for baseline in spec.references]
    runs = (RunSpec.model_validate_json(json.dumps(substitute(run, change))) for change in changes)
    yield from (run for run in runs if run.freeze.policy != "random_matched")
