"""Reading images for anomalib: those of more than 8 bits over their whole range, bad ones reported by name."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data.utils import image as anomalib_image
from PIL import Image

from mixedteacher_edge.decoding import (
    DECODE_ERRORS,
    MIN_SIDE,
    SIXTEEN_BIT_MAX,
    check_image,
    check_size,
    deep_values,
    to_rgb,
    undecodable,
)
from mixedteacher_edge.errors import DataError

__all__ = ["DECODE_ERRORS", "MIN_SIDE", "check_file_size", "check_image", "check_size", "read_image", "to_rgb"]

# behind the plugin's own, where that has taken its place
_anomalib_read_image = getattr(anomalib_image.read_image, "__wrapped__", anomalib_image.read_image)


def read_image(path: str | Path, as_tensor: bool = False) -> Any:
    """Read an image as anomalib's ``read_image`` does, and grey ones of more than 8 bits over their whole range.

    anomalib converts with Pillow's ``convert("RGB")``, which clips values at 255: a 16-bit photo becomes white without
    a word, and one of floating-point values in ``[0, 1]`` black. Here 16-bit values are divided by 65535, and
    floating-point ones are taken as they are.

    Args:
        path: Image file.
        as_tensor: Return a tensor rather than an array.

    Returns:
        float32 tensor of shape ``(3, H, W)``, or float64 array of shape ``(H, W, 3)``, both in ``[0, 1]``.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it cannot be decoded, or has values of a range that is not known.
    """
    try:
        with Image.open(path) as image:
            values = deep_values(image, path)
            if values is None:
                return _anomalib_read_image(path, as_tensor=as_tensor)
    except (FileNotFoundError, DataError):
        raise
    except DECODE_ERRORS as error:
        raise undecodable(path, error) from error
    grey = values / SIXTEEN_BIT_MAX if values.dtype == np.uint16 else values.astype(np.float64)
    if as_tensor:
        return torch.from_numpy(grey).float().expand(3, -1, -1).contiguous()
    return np.repeat(grey[..., None], 3, axis=-1)


def check_file_size(path: str | Path) -> None:
    """Check an image file's size by its header.

    Args:
        path: Image file.

    Raises:
        DataError: If a side is below 32 pixels.
    """
    with Image.open(path) as image:
        check_size(path, image.height, image.width)
