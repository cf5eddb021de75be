"""Reads a crack data set: a Parquet file of image and mask files, and a JSON file that says which images belong together."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fat_ray.errors import DataError
from fat_ray.tasks.crack.images import decode_pair

_COLUMNS = ("id", "image_jpeg", "mask_png")
_ROWS_AT_ONCE = 64  # the encoded files of so many rows are held at a time


@dataclass(frozen=True)
class Pairs:
    """A decoded data set.

    Attributes:
        ids: One per pair, unique.
        images: uint8 (N, 3, size, size).
        masks: uint8 (N, 1, size, size), 1 is crack.
    """

    ids: list[str]
    images: Tensor
    masks: Tensor


def read_pairs(path: Path, size: int) -> Pairs:
    """Decodes all pairs of a Parquet file with columns id, image_jpeg and mask_png.

    Args:
        path: The file.
        size: Height and width to which images and masks are resized.

    Raises:
        DataError: The file is missing, no Parquet file, empty or lacks a column; an id is missing or repeated; a pair cannot be used.
    """
    ids, images, masks = [], [], []
    seen = set()
    for name, image_jpeg, mask_png in _rows(path):
        if name in seen:
            raise DataError(f"{path}: id {name!r} occurs more than once; ids must be unique")
        seen.add(name)
        try:
            image, mask = decode_pair(name, image_jpeg, mask_png, size)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        ids.append(name)
        images.append(image)
        masks.append(mask)
    if not ids:
        raise DataError(f"{path}: the data set is empty; at least one image per split is needed")
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Pairs(ids, stacked, torch.from_numpy(np.stack(masks)).unsqueeze(1))


def _rows(path: Path) -> Iterator[tuple[str, bytes, bytes]]:
    if not path.is_file():
        raise DataError(f"task.data: {path} is not a file; give `embedded` or the path of a Parquet file")
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS)):
                yield from _complete_rows(path, batch.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"task.data: {path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def _check_columns(path: Path, schema: pa.Schema) -> None:
    for column in _COLUMNS:
        if column not in schema.names:
            raise DataError(
                f"task.data: {path} has no column {column}; needed are {', '.join(_COLUMNS)}, found are {', '.join(schema.names)}"
            )
        kind = schema.field(column).type
        is_text, is_bytes = (
            pa.types.is_string(kind) or pa.types.is_large_string(kind),
            pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
        )
        if not (is_text if column == "id" else is_bytes):
            raise DataError(f"task.data: column {column} of {path} holds {kind}; it must hold {'string' if column == 'id' else 'binary'}")


def _complete_rows(path: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[str, bytes, bytes]]:
    for row in rows:
        for column in _COLUMNS:
            if row[column] is None:
                raise DataError(f"{path}: {column} of id {row['id']!r} is null; every row needs {', '.join(_COLUMNS)}")
        yield row["id"], row["image_jpeg"], row["mask_png"]


def read_groups(path: Path, ids: Sequence[str]) -> list[str]:
    """The group of each id, from a JSON object that maps id to group (a string or an integer).

    Raises:
        DataError: The file is missing or no such object, or lacks some of the ids.
    """
    try:
        groups = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"task.groups: {path} is not a readable JSON file: {error}") from error
    if not isinstance(groups, dict):
        raise DataError(f"task.groups: {path} holds a {type(groups).__name__}; it must be an object that maps image id to group")
    missing = [name for name in ids if name not in groups]
    if missing:
        raise DataError(f"task.groups: {path} has no group for {len(missing)} of {len(ids)} images, such as {', '.join(missing[:3])}")
    for name in ids:
        if isinstance(groups[name], bool) or not isinstance(groups[name], str | int):
            raise DataError(f"task.groups: {path} gives {name!r} the group {groups[name]!r}; it must be a string or an integer")
    return [str(groups[name]) for name in ids]
