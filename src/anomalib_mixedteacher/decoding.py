"""Reading files for anomalib by the rules of the edge: 16 bits over their whole range, upright, bad ones named."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import to_dtype, to_image
from torchvision.tv_tensors import Mask

from anomalib_mixedteacher.errors import ConfigurationError, DataError
from mixedteacher_edge.decoding import BITS, DECODE_ERRORS, ORIENTATION, any_size, setting, to_rgb

logger = logging.getLogger(__name__)


def read_image(path: str | Path, as_tensor: bool = False) -> Any:
    """Read an image in place of anomalib's ``read_image``.

    anomalib converts with Pillow's ``convert("RGB")``, which clips values at 255: a 16-bit photo becomes white without
    a word, and one of floating-point values in ``[0, 1]`` black. It leaves a photo lying that EXIF says is upright, and
    refuses one of more than 179 megapixels. See :func:`~mixedteacher_edge.decoding.to_rgb`.

    Args:
        path: Image file.
        as_tensor: Return a tensor rather than an array.

    Returns:
        float32 tensor of shape ``(3, H, W)``, or float64 array of shape ``(H, W, 3)``, both in ``[0, 1]``.

    Raises:
        DataError: If it cannot be decoded, or has values of a range that is not known.
    """
    rgb = to_rgb(path, min_side=1)
    if as_tensor:
        return to_dtype(to_image(rgb), torch.float32, scale=True)
    return rgb / (255.0 if rgb.dtype == np.uint8 else np.float64(1))


def read_mask(path: str | Path, as_tensor: bool = False) -> Any:
    """Read a mask in place of anomalib's ``read_mask``: upright, and with as many pixels as an image may have.

    Args:
        path: Mask file.
        as_tensor: Return a mask of 0 and 1 rather than an array of grey values.

    Returns:
        uint8 mask or array, of shape ``(H, W)``.

    Raises:
        DataError: If it cannot be decoded.
    """
    try:
        with any_size(), Image.open(path) as file:
            grey = np.array(ImageOps.exif_transpose(file).convert("L"))
    except DECODE_ERRORS as error:
        msg = f"Cannot read the mask {path} ({error}): replace the file, or remove it together with its image."
        raise DataError(msg) from error
    return Mask(torch.from_numpy(grey > 0), dtype=torch.uint8) if as_tensor else grey


def check_image(path: str | Path) -> None:
    """Check that an image can be decoded and is large enough; one that shows nothing is named.

    Args:
        path: Image file.

    Raises:
        DataError: If it cannot be used.
    """
    rgb = to_rgb(path)
    if (rgb == rgb[0, 0]).all():
        logger.warning("%s has one value in all its pixels, as of a covered camera: replace it or remove it.", path)


def check_mask(image: str | Path, mask: str | Path) -> None:
    """Check that a mask has the shape of its image, which is upright.

    Raises:
        DataError: If it has another one.
    """
    (width, height), drawn = image_size(image), image_size(mask)
    if drawn != (width, height):
        msg = f"The mask {mask} is {drawn[0]} x {drawn[1]} pixels, its image {width} x {height}: draw it on the image."
        raise DataError(msg)


def image_size(path: str | Path) -> tuple[int, int]:
    """Read the width and height of an image file, upright.

    Raises:
        DataError: If the file cannot be decoded.
    """
    try:
        with any_size(), Image.open(path) as file:
            turned = file.format != "TIFF" and file.getexif().get(ORIENTATION, 1) >= 5  # Pillow turns TIFF files itself
            return file.size[::-1] if turned else file.size
    except DECODE_ERRORS as error:
        msg = f"Cannot read {path} ({error}): replace the file, or remove it."
        raise DataError(msg) from error


def check_bits(training_data: dict[str, Any] | None) -> None:
    """Check that images are read with the bits that a model was trained with.

    Args:
        training_data: What the model's checkpoint knows of its training images.

    Raises:
        ConfigurationError: If they are not.
    """
    trained = (training_data or {}).get("bits", 16)
    if trained != setting(BITS):
        msg = f"The model was trained on images of {trained} bits: set the environment variable {BITS}={trained}."
        raise ConfigurationError(msg)
