"""Tiny crack data sets, made on the spot."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]

pa.array([b""])  # the first array makes pyarrow import pandas: half a second that no single test should be charged with


def encode(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def jpeg(size: tuple[int, int] = (64, 64), colour: tuple[int, int, int] = (200, 120, 40)) -> bytes:
    return encode(Image.new("RGB", size, colour), "JPEG")


def png(mask: np.ndarray) -> bytes:
    return encode(Image.fromarray(mask.astype(np.uint8) * 255), "PNG")


def crack(size: int = 64, row: int = 20) -> np.ndarray:
    """A horizontal crack of one pixel."""
    mask = np.zeros((size, size), dtype=bool)
    mask[row] = True
    return mask


def make_rows(count: int, size: int = 64) -> list[Row]:
    """Tile i has a black crack in row i on a flat colour whose red is 20 i."""
    rows = []
    for i in range(count):
        mask = crack(size, row=i)
        image = np.full((size, size, 3), (20 * i, 100, 50), dtype=np.uint8) * ~mask[..., None]
        rows.append({"id": f"tile{i}", "image_jpeg": encode(Image.fromarray(image), "JPEG"), "mask_png": png(mask)})
    return rows


def write_rows(path: Path, rows: list[Row], columns: tuple[str, ...] = ("id", "image_jpeg", "mask_png")) -> Path:
    schema = pa.schema([(column, pa.string() if column == "id" else pa.binary()) for column in columns])
    pq.write_table(pa.Table.from_pylist([{column: row[column] for column in columns} for row in rows], schema), path)
    return path
