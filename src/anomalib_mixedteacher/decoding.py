"""Images of any accepted kind as RGB arrays, by the same rules for training and beside the camera.

It imports numpy and Pillow, neither torch nor anomalib.
"""

import logging
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from anomalib_mixedteacher.errors import DataError

logger = logging.getLogger(__name__)

MIN_SIDE = 32  # the deepest layers in use have a stride of 32: below it a map has no position of its own
SIXTEEN_BIT_MAX = 65535

# What Pillow raises for files that are truncated, of another type, damaged inside, or absurdly large.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, Image.DecompressionBombError)

ImageSource: TypeAlias = str | Path | bytes | Image.Image | NDArray[Any]


def to_rgb(image: ImageSource, name: str | None = None) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Turn an image into an RGB array; grey is repeated over the channels, alpha is dropped.

    Args:
        image: Image file, encoded content of one, Pillow image, or array of shape ``(H, W)``, ``(H, W, 1)``,
            ``(H, W, 3)`` or ``(H, W, 4)`` of uint8, of uint16, or of floating-point values in ``[0, 1]``.
        name: What messages call the image; the path or the kind by default.

    Returns:
        Contiguous array of shape ``(H, W, 3)``: uint8 of 8-bit images, else float32 in ``[0, 1]``. It shares
        the memory of ``image`` where nothing had to be changed.

    Raises:
        DataError: If there is no such file, if it cannot be decoded, if a side is below 32 pixels, or if the array's
            shape, type or values are not as above.
    """
    name = image_name(image) if name is None else name
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, name)
    try:
        if isinstance(image, Image.Image):
            values = _decode(image, name)
        elif isinstance(image, (str, Path, bytes)):
            with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as file:
                values = _decode(file, name)
        else:
            msg = f"An image cannot be a {type(image).__name__}: give a path, bytes, a Pillow image or a numpy array."
            raise DataError(msg)
    except DataError:
        raise
    except FileNotFoundError as error:
        msg = f"There is no image {name}: check the path."
        raise DataError(msg) from error
    except DECODE_ERRORS as error:
        raise undecodable(name, error) from error
    return _array_to_rgb(values, name)


def deep_values(image: Image.Image, name: str | Path) -> NDArray[np.uint16] | NDArray[np.float32] | None:
    """Take the values of a grey image of more than 8 bits, which Pillow's ``convert("RGB")`` would clip at 255.

    Args:
        image: Opened image.
        name: What messages call the image.

    Returns:
        Array of shape ``(H, W)``: uint16 over ``[0, 65535]`` or float32 in ``[0, 1]``; ``None`` if the image is of
        another kind.

    Raises:
        DataError: If the values are 32-bit integers, or floating-point and not in ``[0, 1]``.
    """
    # 16-bit PGM, and with older versions of Pillow 16-bit PNG, are opened as 32-bit integers
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        msg = (
            f"The image {name} has 32-bit integers as values, of a range that is not known: save it with 8 or 16 bits."
        )
        raise DataError(msg)
    if image.mode != "F":
        return None
    values = np.asarray(image)
    check_range(values, name, "divide them by their range, or save the image with 8 or 16 bits")
    return values


def check_range(values: NDArray[np.floating[Any]], name: str | Path, remedy: str) -> None:
    """Check that floating-point values are in ``[0, 1]``.

    Args:
        values: Values of an image.
        name: What the message calls the image.
        remedy: What the user may do, to end the message.

    Raises:
        DataError: If they are not.
    """
    if not (values.min() >= 0 and values.max() <= 1):  # written so that NaN fails as well
        msg = f"The image {name} has values that are not in [0, 1]: {remedy}."
        raise DataError(msg)


def check_size(name: str | Path, height: int, width: int) -> None:
    """Check that an image is large enough.

    Args:
        name: Image file, or what else the message is to call the image.
        height: Height in pixels.
        width: Width in pixels.

    Raises:
        DataError: If a side is below 32 pixels.
    """
    if min(height, width) < MIN_SIDE:
        msg = (
            f"The image {name} is {width} x {height} pixels, smaller than {MIN_SIDE} pixels on a side: "
            "remove it or provide a larger one."
        )
        raise DataError(msg)


def check_image(path: str | Path) -> None:
    """Check that an image can be decoded and is large enough, without keeping its pixels; name it if it shows nothing.

    Args:
        path: Image file.

    Raises:
        DataError: If it cannot be decoded, has a side below 32 pixels, or values of a range that is not known.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            image.draft("L", (MIN_SIDE, MIN_SIDE))  # JPEG: read the whole stream, decode at an eighth of the size
            image.load()
            flat = _is_flat(image, path)
        if flat and image.size != (width, height):
            with Image.open(path) as whole:
                flat = _is_flat(whole, path)
    except DataError:
        raise
    except DECODE_ERRORS as error:
        raise undecodable(path, error) from error
    check_size(path, height, width)
    if flat:
        logger.warning("%s has one value in all its pixels, as of a covered camera: replace it or remove it.", path)


def undecodable(name: str | Path, error: Exception) -> DataError:
    """Make the error for an image that Pillow cannot read.

    Args:
        name: Image file, or what else the message is to call the image.
        error: What Pillow raised.
    """
    # Pillow's own sentence repeats the path, or shows the address of a buffer
    reason = "not a known image format" if isinstance(error, UnidentifiedImageError) else error
    return DataError(f"Cannot read the image {name} ({reason}): replace the file or remove it.")


def image_name(image: ImageSource) -> str:
    """Name an image for messages: by its path, or by its kind if it has none."""
    if isinstance(image, (str, Path)):
        return str(image)
    return str(getattr(image, "filename", "") or f"({type(image).__name__})")


def _is_flat(image: Image.Image, path: str | Path) -> bool:
    values = deep_values(image, path)
    if values is not None:  # not every 16-bit mode has extrema in Pillow
        return bool(values.min() == values.max())
    extrema: Any = image.getextrema()  # one pair of values, or one for each band
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in bands)


def _decode(image: Image.Image, name: str) -> NDArray[Any]:
    if (values := deep_values(image, name)) is not None:
        return values
    return np.array(image.convert("RGB"))  # a copy, since OpenVINO shares memory with writable arrays only


def _array_to_rgb(values: NDArray[Any], name: str) -> NDArray[np.uint8] | NDArray[np.float32]:
    channels_last = values[..., None] if values.ndim == 2 else values
    if channels_last.ndim != 3 or channels_last.shape[-1] not in {1, 3, 4}:
        msg = (
            f"The image {name} has the shape {values.shape}: give height and width, then 1, 3 or 4 channels if there "
            "are any."
        )
        raise DataError(msg)
    check_size(name, *channels_last.shape[:2])
    grey = channels_last.shape[-1] == 1
    rgb = np.repeat(channels_last, 3, axis=-1) if grey else np.ascontiguousarray(channels_last[..., :3])
    if rgb.dtype == np.uint8:
        return rgb
    if rgb.dtype.kind == "u" and rgb.dtype.itemsize == 2:  # in either byte order
        return np.divide(rgb, SIXTEEN_BIT_MAX, dtype=np.float32)
    if rgb.dtype.kind != "f":
        msg = f"The image {name} has values of type {rgb.dtype}: give uint8, uint16, or floating-point in [0, 1]."
        raise DataError(msg)
    check_range(rgb, name, "divide them by 255, or pass uint8")
    return rgb.astype(np.float32, copy=False)
