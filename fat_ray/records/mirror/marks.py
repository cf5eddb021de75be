"""Which runs have been mirrored to their end, and where: a file for each, so that a mirror that was interrupted goes on."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fat_ray.records.files import write_atomic
from fat_ray.records.mirror.access import base_url
from fat_ray.spec.study import WandbSpec

STUDY = "study"
"""Stands for the W&B run that sums up a study among its runs; these end in their seed, so that none can be called so."""


@dataclass(frozen=True)
class Mark:
    """A run that has been mirrored to its end.

    Attributes:
        run: Its name.
        fingerprint: What its records were, see `content.fingerprint`.
        target: Server, entity and project.
        url: Where it can be looked at; empty offline.
        identity: The id of the W&B run.
    """

    run: str
    fingerprint: str
    target: str
    url: str
    identity: str


class Marks:
    """What has been mirrored of a study in one mode to one project.

    Args:
        directory: The study's directory.
        spec: Mode (not ``auto``), project and entity.
    """

    def __init__(self, directory: Path, spec: WandbSpec) -> None:
        self._study, self._is_offline = directory, spec.mode == "offline"
        self._place = directory / "wandb" / "mirrored" / spec.mode
        where = "offline" if self._is_offline else base_url()
        self._target = f"{where} {spec.entity or ''}/{spec.project}"

    def get(self, run: str) -> Mark | None:
        """The mark of a run; None where it has not been mirrored to its end, or to another project, or where its offline file is gone."""
        with suppress(OSError, ValueError, TypeError):
            mark = Mark(**json.loads(self._path(run).read_bytes()))
            if mark.target == self._target and not (self._is_offline and not offline_files(self._study, mark.identity)):
                return mark
        return None

    def set(self, run: str, fingerprint: str, url: str, identity: str) -> None:
        """Notes that all of a run has been mirrored."""
        mark = Mark(run, fingerprint, self._target, url, identity)
        if not self._is_offline:
            for path in offline_files(self._study, identity):
                path.with_name(f"{path.name}.synced").touch()  # by which `wandb sync` knows that it has nothing to do
        write_atomic(self._path(run), json.dumps(asdict(mark), indent=1).encode())

    def unset(self, run: str) -> None:
        """Forgets that a run has been mirrored."""
        self._path(run).unlink(missing_ok=True)

    def _path(self, run: str) -> Path:
        return self._place / f"{run}.json"


def offline_files(directory: Path, identity: str) -> list[Path]:
    """The offline files of a W&B run."""
    return sorted(directory.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
