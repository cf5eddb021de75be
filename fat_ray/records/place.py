"""Where a study lies: a directory of this machine, or a URI of any file system that Arrow knows, such as ``s3://bucket/study``."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from fat_ray.errors import InputError, OutputError, RecordError
from fat_ray.records.files import write_atomic
from fat_ray.records.redact import scrub


@dataclass(frozen=True)
class Place:
    """A directory.

    Attributes:
        name: As it was given, without secrets and options: for messages.
        root: Its path within the file system.
        options: What stood behind the path of a URI, from the question mark on.
        filesystem: The file system.
    """

    name: str
    root: str
    options: str = ""
    filesystem: FileSystem = field(default_factory=LocalFileSystem, compare=False)

    @property
    def local(self) -> Path | None:
        """The directory where it is one of this machine."""
        return Path(self.root) if isinstance(self.filesystem, LocalFileSystem) else None

    @property
    def parent(self) -> "Place":
        """The directory around it."""
        name = str(PurePosixPath(self.name).parent) if self.local else self.name.rpartition("/")[0]
        return Place(name, str(PurePosixPath(self.root).parent), self.options, self.filesystem)

    def path(self, relative: str) -> str:
        """Path of something in it, within the file system."""
        return f"{self.root}/{relative}"

    def shown(self, path: str) -> str:
        """A path within the file system as people know it."""
        return f"{self.name}{path.removeprefix(self.root)}"

    def read(self, relative: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: There is none.
            OSError: It cannot be read.
        """
        with self.filesystem.open_input_stream(self.path(relative)) as stream:
            content: bytes = stream.read()
            return content

    def write(self, relative: str, data: bytes) -> None:
        """Writes a file in it, in place of an older one, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            if self.local:
                write_atomic(self.local / relative, data)
            else:
                with self.filesystem.open_output_stream(self.path(relative)) as stream:  # object stores show it when it is closed
                    stream.write(data)
        except (OSError, pa.ArrowException, RecordError) as error:
            raise OutputError(f"{self.name}/{relative} cannot be written: {error}") from error

    def files(self, relative: str, *, recursive: bool = False) -> list[FileInfo]:
        """The files in a directory; none where there is no directory.

        Raises:
            OSError: The file system cannot be asked.
        """
        selector = FileSelector(self.path(relative), recursive=recursive, allow_not_found=True)
        return [info for info in self.filesystem.get_file_info(selector) if info.type == FileType.File]


def place_of(given: str | Path | Place) -> Place:
    """A place from what a user gives.

    Args:
        given: A path, or a URI (``scheme://…``) that `pyarrow.fs.FileSystem.from_uri` understands.

    Raises:
        InputError: No file system goes with the URI.
    """
    if isinstance(given, Place):
        return given
    if "://" not in str(given):
        return Place(str(Path(given)), str(Path(given)))
    path, question, options = str(given).partition("?")
    uri = f"{path.rstrip('/') if not path.endswith('://') else path}{question}{options}"
    try:
        filesystem, root = FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{scrub(str(given))}: no file system goes with this URI: {scrub(reason)}") from error
    if isinstance(filesystem, LocalFileSystem):
        return Place(root, root)
    return Place(scrub(path.rstrip("/")), root, f"{question}{scrub(options)}", filesystem)
