"""One image with its mask: from the bytes of files that nobody vouches for to arrays of the model's input size."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fat_ray.errors import DataError

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded; below PIL's own limit, which only warns at first."""

# What PIL raises for damaged or hostile files.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)
_SINGLE_CHANNEL = ("1", "L", "I", "I;16")


def decode_pair(name: str, image_jpeg: bytes, mask_png: bytes, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decodes an image and its mask and resizes both to a square.

    Args:
        name: Id of the pair, for messages.
        image_jpeg: A JPEG file.
        mask_png: A PNG file of the same size; every pixel that is not black is crack.
        size: Height and width of the result in pixels.

    Returns:
        The image (size, size, 3) and the mask (size, size) of zeros and ones.

    Raises:
        DataError: One of the two is unreadable or too large, or their sizes differ.
    """
    image = _open(name, "image_jpeg", image_jpeg, "JPEG")
    mask = _open(name, "mask_png", mask_png, "PNG")
    if image.size != mask.size:
        raise DataError(f"mask_png of {name!r} is {_size(mask)} pixels but its image is {_size(image)}; they must be equal")
    try:
        return _resize_image(image, size), _resize_mask(_crack(mask), size)
    except _UNREADABLE as error:
        raise DataError(f"image_jpeg or mask_png of {name!r} cannot be decoded: {error}") from error


def _open(name: str, column: str, content: bytes, file_format: str) -> Image.Image:
    """Reads the header only; pixels are decoded when they are first needed."""
    try:
        image = Image.open(io.BytesIO(content), formats=(file_format,))
    except _UNREADABLE as error:
        raise DataError(f"{column} of {name!r} is not a readable {file_format} file of at most {MAX_PIXELS} pixels") from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{column} of {name!r} has {_size(image)} pixels; at most {MAX_PIXELS} are accepted")
    return image


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _resize_image(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Antialiased; a JPEG is decoded at the smallest scale (1, 1/2, 1/4, 1/8) that is not below `size`, which halves the time."""
    image.draft("RGB", (size, size))
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), dtype=np.uint8)


def _crack(mask: Image.Image) -> NDArray[np.bool_]:
    """True where any colour channel is above zero; transparency is ignored."""
    channels = np.atleast_3d(np.asarray(mask if mask.mode in _SINGLE_CHANNEL else mask.convert("RGB")))
    return np.asarray(channels.any(axis=2), dtype=np.bool_)


def _resize_mask(crack: NDArray[np.bool_], size: int) -> NDArray[np.uint8]:
    """A pixel is crack if any pixel under it is.

    Cracks are one to three pixels wide: a majority of the area under a pixel, or its nearest neighbour, would break or lose them. Where the
    mask is enlarged, a range of `reduceat` is a single pixel, so that this becomes the nearest neighbour.
    """
    rows = np.arange(size) * crack.shape[0] // size
    columns = np.arange(size) * crack.shape[1] // size
    return np.logical_or.reduceat(np.logical_or.reduceat(crack, rows, axis=0), columns, axis=1).astype(np.uint8)
