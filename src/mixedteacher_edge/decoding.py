"""Images of any accepted kind as RGB arrays, by the same rules for training and beside the camera."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mixedteacher_edge.errors import ConfigurationError, DataError

MIN_SIDE = 32  # the deepest layers in use have a stride of 32: below it a map has no position of its own
BITS = "MIXEDTEACHER_BITS"
MAX_PIXELS = "MIXEDTEACHER_MAX_PIXELS"
_DEFAULTS = {BITS: 16, MAX_PIXELS: 500_000_000}  # 1.5 GB as RGB

# What Pillow raises for files that are truncated, of another type, or damaged inside.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError)
_PILLOW = threading.Lock()
_STRIP = 2**22  # pixels that are converted at a time
ORIENTATION, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 0x0112, 258, 339  # tags of EXIF and TIFF

ImageSource: TypeAlias = str | Path | bytes | Image.Image | NDArray[Any]
Named: TypeAlias = tuple[str, ImageSource]
RGB: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]

logger = logging.getLogger(__name__)


def to_rgb(
    image: ImageSource,
    name: str | None = None,
    bits: int | None = None,
    max_pixels: int | None = None,
    min_side: int = MIN_SIDE,
) -> RGB:
    """Turn an image into an RGB array; grey is repeated over the channels, alpha is dropped, EXIF turns it upright.

    Args:
        image: Image file, encoded content of one, Pillow image, or array of shape ``(H, W)``, ``(H, W, 1)``,
            ``(H, W, 3)`` or ``(H, W, 4)`` of uint8, of uint16, or of floating-point values in ``[0, 1]``.
        name: What messages call the image; the path or the kind by default.
        bits: Bits that the values of a 16-bit image use, 9 to 16, as 12 of a 12-bit camera's; the environment variable
            ``MIXEDTEACHER_BITS`` or 16 by default.
        max_pixels: Most pixels that a file may have; the environment variable ``MIXEDTEACHER_MAX_PIXELS`` or 500
            million by default.
        min_side: Fewest pixels on a side.

    Returns:
        Contiguous array of shape ``(H, W, 3)``: uint8 of 8-bit images, else float32 in ``[0, 1]``. It shares
        the memory of ``image`` where nothing had to be changed.

    Raises:
        DataError: If there is no such file, if it cannot be decoded, if it is too small or too large, or if the array's
            shape, type or values are not as above.
        ConfigurationError: If an environment variable is no number.
    """
    name = image_name(image) if name is None else name
    values = to_values(image, name, max_pixels, min_side)
    scaled: NDArray[Any] = _scaled(values, name, setting(BITS, bits))
    return np.repeat(scaled, 3, axis=-1) if values.shape[-1] == 1 else np.ascontiguousarray(scaled[..., :3])


def to_values(image: ImageSource, name: str, max_pixels: int | None = None, min_side: int = MIN_SIDE) -> NDArray[Any]:
    """Turn an image into an array as :func:`to_rgb` does, but leave its values, and grey images, as they are.

    Returns:
        Array of shape ``(H, W, C)`` with 1, 3 or 4 channels.
    """
    values = image if isinstance(image, np.ndarray) else _decode(image, name, setting(MAX_PIXELS, max_pixels))
    channels_last = values[..., None] if values.ndim == 2 else values
    if channels_last.ndim != 3 or channels_last.shape[-1] not in {1, 3, 4}:
        msg = (
            f"The image {name} has the shape {values.shape}: give height and width, then 1, 3 or 4 channels if there "
            "are any."
        )
        raise DataError(msg)
    height, width, _ = channels_last.shape
    check_size(name, height, width, min_side)
    return channels_last


def shrink(rgb: RGB, size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize an image ``(H, W, 3)`` bilinearly with antialiasing, as exported graphs do, but strip by strip.

    Returns:
        float32 array of the new height and width in ``[0, 1]``.
    """
    height, width = size
    resized = np.empty((height, width, 3), np.float32)
    narrow = np.empty((rgb.shape[0], width), np.float32)
    rows = 1 + _STRIP // rgb.shape[1]
    for channel in range(3):
        for top in range(0, rgb.shape[0], rows):
            strip = Image.fromarray(rgb[top : top + rows, :, channel].astype(np.float32))
            narrow[top : top + rows] = np.asarray(strip.resize((width, strip.height), Image.Resampling.BILINEAR))
        resized[..., channel] = np.asarray(Image.fromarray(narrow).resize((width, height), Image.Resampling.BILINEAR))
    return resized / np.float32(255) if rgb.dtype == np.uint8 else resized


def setting(variable: str, given: int | None = None) -> int:
    """Give the value of a setting: what was given, else the environment variable's, else the default."""
    text = os.environ.get(variable, str(_DEFAULTS[variable]))
    if given is None and not text.isdecimal():
        msg = f"The environment variable {variable} is {text!r}: give a number, or remove it."
        raise ConfigurationError(msg)
    value = int(text) if given is None else given
    if variable == BITS and not 9 <= value <= 16:
        msg = f"The values of a 16-bit image use 9 to 16 bits, not {value}: mend --bits or the variable {BITS}."
        raise ConfigurationError(msg)
    return value


def check_size(name: str | Path, height: int, width: int, min_side: int = MIN_SIDE) -> None:
    """Check that no side of an image is below ``min_side`` pixels; a DataError says that one is."""
    if min(height, width) < min_side:
        msg = (
            f"The image {name} is {width} x {height} pixels, smaller than {min_side} pixels on a side: "
            "remove it or provide a larger one."
        )
        raise DataError(msg)


def image_name(image: ImageSource) -> str:
    """Name an image for messages: by its path, or by its kind if it has none."""
    if isinstance(image, (str, Path)):
        return str(image)
    return str(getattr(image, "filename", "") or f"({type(image).__name__})")


def pages(path: Path) -> int:
    """Count the pages of a TIFF file; 1 for any other, and for a file that cannot be read."""
    if path.suffix.lower() not in {".tif", ".tiff"}:
        return 1
    try:
        with any_size(), Image.open(path) as file:
            return int(getattr(file, "n_frames", 1))
    except DECODE_ERRORS:
        return 1


def read_page(path: Path, number: int) -> Image.Image:
    """Read a page of a TIFF file, counted from 1."""
    with any_size():
        file = Image.open(path)
        file.seek(number - 1)
    return file


def _decode(image: Any, name: str, max_pixels: int) -> NDArray[Any]:
    try:
        if isinstance(image, Image.Image):
            return _values(image, name, max_pixels)
        if not isinstance(image, (str, Path, bytes)):
            msg = f"An image cannot be a {type(image).__name__}: give a path, bytes, a Pillow image or a numpy array."
            raise DataError(msg)
        with any_size():
            file = Image.open(BytesIO(image) if isinstance(image, bytes) else image)
        with file:
            if file.format == "TIFF" and getattr(file, "n_frames", 1) > 1:
                _tell_of_pages(name)
            return _values(file, name, max_pixels)
    except DataError:
        raise
    except FileNotFoundError as error:
        msg = f"There is no image {name}: check the path."
        raise DataError(msg) from error
    except DECODE_ERRORS as error:
        # Pillow's own sentence repeats the path, or shows the address of a buffer
        reason = "not a known image format" if isinstance(error, UnidentifiedImageError) else error
        msg = f"Cannot read the image {name} ({reason}): replace the file or remove it."
        raise DataError(msg) from error


@contextmanager
def any_size() -> Iterator[None]:
    """Lift Pillow's limit, which is one for the whole process and takes a line scan for an attack."""
    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=1024)
def _tell_of_pages(name: str) -> None:
    logger.warning("%s has several pages, of which the first is taken.", name)


def _values(image: Image.Image, name: str, max_pixels: int) -> NDArray[Any]:
    """Take an image's values, upright: ``(H, W, 3)`` uint8, or ``(H, W)`` of a grey image.

    Those of more than 8 bits Pillow's ``convert("RGB")`` would clip at 255.
    """
    width, height = image.size
    if width * height > max_pixels:
        msg = (
            f"The image {name} has {width * height / 1e6:.1f} megapixels, and the limit is {max_pixels / 1e6:g}: raise "
            f"it (max_pixels, --max-pixels, or the environment variable {MAX_PIXELS}), or cut the image up."
        )
        raise DataError(msg)
    if width * height > (Image.MAX_IMAGE_PIXELS or max_pixels):
        with any_size():  # TIFF files are checked once more when they are loaded
            image.load()
    else:
        image.load()
    values = _deep_values(image, name)
    if values is None:
        width, height = image.size  # TIFF files may have been turned
        mode, shape = ("L", (height, width)) if image.mode == "L" else ("RGB", (height, width, 3))
        values = np.empty(shape, np.uint8)
        rows = 1 + _STRIP // width
        for top in range(0, height, rows):  # as a whole, Pillow would take the memory twice and more
            strip = image.crop((0, top, width, min(top + rows, height)))
            values[top : top + rows] = np.asarray(strip.convert(mode))
    # TIFF files come upright, and without this entry, when they are loaded
    turned = int(image.getexif().get(ORIENTATION, 1))
    values = values.swapaxes(0, 1) if turned >= 5 else values
    return values[:: -1 if turned in {3, 4, 7, 8} else 1, :: -1 if turned in {2, 3, 6, 7} else 1]


def _deep_values(image: Image.Image, name: str) -> NDArray[Any] | None:
    # 16-bit PGM, and with older versions of Pillow 16-bit PNG, are opened as 32-bit integers
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode != "I":
        return None
    tags = getattr(image, "tag_v2", {})
    if tags.get(_BITS_PER_SAMPLE) == (16,) and tags.get(_SAMPLE_FORMAT) in {2, (2,)}:
        return np.asarray(image).astype(np.int16)
    msg = f"The image {name} has 32-bit integers as values, of a range that is not known: save it with 8 or 16 bits."
    raise DataError(msg)


def _scaled(values: NDArray[Any], name: str, bits: int) -> RGB:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind in "iu" and values.dtype.itemsize == 2:  # in either byte order
        largest = 2 ** (min(bits, 15) if values.dtype.kind == "i" else bits) - 1
        if values.min() < 0 or values.max() > largest:
            found = f"{values.min()} to {values.max()}"
            msg = f"The image {name} has values from {found}, not 0 to {largest}: give the camera's bits, or mend it."
            raise DataError(msg)
        return np.divide(values, largest, dtype=np.float32)
    if values.dtype.kind != "f":
        msg = f"The image {name} has values of type {values.dtype}: give uint8, uint16, or floating-point in [0, 1]."
        raise DataError(msg)
    if not (values.min() >= 0 and values.max() <= 1):  # written so that NaN fails as well
        msg = f"The image {name} has values that are not in [0, 1]: divide them by their range, or save it with 8 bits."
        raise DataError(msg)
    return values.astype(np.float32, copy=False)
