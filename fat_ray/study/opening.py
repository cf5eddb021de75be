"""What comes before any run: the checks that need no cluster, and the study's directory, which goes again if nothing was started in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fat_ray.errors import InputError
from fat_ray.records.manifest import create_study, discard_study
from fat_ray.records.wandb import WandbMirror
from fat_ray.spec.study import StudySpec


@contextmanager
def opened(spec: StudySpec, text: str, directory: Path, command: Sequence[str]) -> Iterator[WandbMirror]:
    """Checks task, directory and mirror, and makes the directory; bad input or Ctrl-C before the first run leaves nothing behind.

    Args:
        spec: The study.
        text: The study file as written.
        directory: The study's own directory; absent or empty.
        command: Arguments of the command line, for the manifest.

    Yields:
        The mirror, which can write. Whoever uses it closes it.

    Raises:
        InputError: The data, the directory or W&B cannot be used.
    """
    from fat_ray.tasks.registry import check_task

    check_task(spec.task)
    create_study(directory, spec, text, command=command)
    try:
        mirror = WandbMirror(directory, spec.wandb)
        mirror.check_writable()
        yield mirror
    except (InputError, KeyboardInterrupt):
        discard_study(directory)  # the same command may be given again
        raise
