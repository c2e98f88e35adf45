"""Reading images: 16-bit ones over their whole range, bad ones reported by name."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data.utils import image as anomalib_image
from PIL import Image

from anomalib_mixedteacher.errors import DataError

MIN_SIDE = 32  # the deepest layers in use have a stride of 32: below it a map has no position of its own

# What Pillow raises for files that are truncated, of another type, damaged inside, or absurdly large.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_anomalib_read_image = anomalib_image.read_image


def read_image(path: str | Path, as_tensor: bool = False) -> Any:
    """Read an image as anomalib's ``read_image`` does, and 16-bit grey ones over their whole range.

    anomalib converts with Pillow's ``convert("RGB")``, which clips 16-bit values at 255: a 16-bit photo becomes white
    without a word. Here they are divided by 65535.

    Args:
        path: Image file.
        as_tensor: Return a tensor rather than an array.

    Returns:
        float32 tensor of shape ``(3, H, W)``, or float64 array of shape ``(H, W, 3)``, both in ``[0, 1]``.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            # 16-bit PGM, and with older versions of Pillow 16-bit PNG, are opened as 32-bit integers
            sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"})
            if not sixteen:
                return _anomalib_read_image(path, as_tensor=as_tensor)
            grey = np.asarray(image).astype(np.float64) / np.iinfo(np.uint16).max
    except FileNotFoundError:
        raise
    except DECODE_ERRORS as error:
        raise _undecodable(path, error) from error
    if as_tensor:
        return torch.from_numpy(grey).float().expand(3, -1, -1).contiguous()
    return np.repeat(grey[..., None], 3, axis=-1)


def check_image(path: str | Path) -> None:
    """Check that an image can be decoded and is large enough, without keeping its pixels.

    Args:
        path: Image file.

    Raises:
        DataError: If it cannot be decoded or has a side below 32 pixels.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            image.draft("L", (MIN_SIDE, MIN_SIDE))  # JPEG: read the whole stream, decode at an eighth of the size
            image.load()
    except DECODE_ERRORS as error:
        raise _undecodable(path, error) from error
    check_size(path, height, width)


def check_file_size(path: str | Path) -> None:
    """Check an image file's size by its header.

    Args:
        path: Image file.

    Raises:
        DataError: If a side is below 32 pixels.
    """
    with Image.open(path) as image:
        check_size(path, image.height, image.width)


def check_size(path: str | Path, height: int, width: int) -> None:
    """Check that an image is large enough.

    Args:
        path: Image file, for the message.
        height: Height in pixels.
        width: Width in pixels.

    Raises:
        DataError: If a side is below 32 pixels.
    """
    if min(height, width) < MIN_SIDE:
        msg = (
            f"The image {path} is {width} x {height} pixels, smaller than {MIN_SIDE} pixels on a side: "
            "remove it or provide a larger one."
        )
        raise DataError(msg)


def _undecodable(path: str | Path, error: Exception) -> DataError:
    return DataError(f"Cannot read the image {path} ({error}): replace the file or remove it from the data set.")
