"""Small pictures for the gallery, as data URIs."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from anomalib_mixedteacher.decoding import MIN_SIDE, to_rgb
from anomalib_mixedteacher.errors import DataError
from mixedteacher_edge.detector import Prediction
from mixedteacher_edge.overlay import draw

SIDE = 160
"""Longer side of a thumbnail in pixels."""

MASK_COLOUR = (255, 0, 255)  # in none of the heat map's colours
_QUALITY = 72
_GREY = 128


@dataclass(frozen=True)
class Picture:
    """A thumbnail: its data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Scale:
    """How a model's anomaly map becomes colours, the same for all images of a data set.

    Attributes:
        low: Value of the first colour.
        threshold: The calibrated pixel threshold, which has the middle colour; ``None`` if there is none.
        high: Value of the last colour.
    """

    low: float
    threshold: float | None
    high: float

    @classmethod
    def of(cls, maps: NDArray[np.float32], threshold: float | None) -> "Scale":
        """Reach from the first hundredth of the maps' values to their last thousandth, the threshold in the middle.

        Args:
            maps: All maps, ``(N, h, w)``.
            threshold: The calibrated pixel threshold.
        """
        finite = maps[np.isfinite(maps)].astype(np.float32)
        low, high = (float(v) for v in np.percentile(finite, [1, 99.9])) if finite.size else (0.0, 1.0)
        if threshold is not None:
            low = min(low, threshold - 1e-6 * (abs(threshold) or 1))
            high = max(high, 2 * threshold - low)  # no map reaches the threshold: leave the upper colours unused
        return cls(low, threshold, high if high > low else low + 1)

    def heat(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map values to ``[0, 1]``, the threshold to 0.5; what is not a number counts as the lowest."""
        known = [self.low, self.high] if self.threshold is None else [self.low, self.threshold, self.high]
        heat = np.interp(values, known, np.linspace(0, 1, len(known)))
        return np.nan_to_num(heat).astype(np.float32)


def read_thumbnail(path: Path) -> NDArray[np.uint8]:
    """Read an image and make it small.

    Args:
        path: Image file.

    Returns:
        Array of shape ``(H, W, 3)``, its longer side 160 pixels and none below 32: a narrower strip is widened.

    Raises:
        DataError: If the image is gone or cannot be read.
    """
    rgb = to_rgb(path)
    values = rgb if rgb.dtype == np.uint8 else np.rint(255 * rgb).astype(np.uint8)
    factor = SIDE / max(values.shape[:2])
    height, width = (max(MIN_SIDE, round(factor * side)) for side in values.shape[:2])
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.LANCZOS))


def blank(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make the grey background of a map whose image is gone, as ``(H, W, 3)``, from the map's height and width."""
    factor = SIDE / max(shape)
    return np.full((*(max(MIN_SIDE, round(factor * side)) for side in shape), 3), _GREY, np.uint8)


def overlay(
    background: NDArray[np.uint8], values: NDArray[np.float32], mask: NDArray[np.bool_], scale: Scale
) -> NDArray[np.uint8]:
    """Lay a heat map over a thumbnail, with the contours of the thresholded map (white) and of the mask (magenta).

    Args:
        background: Thumbnail, ``(H, W, 3)``.
        values: Raw anomaly map, ``(h, w)``.
        mask: Ground truth, ``(h, w)``.
        scale: The model's colours.

    Returns:
        Array of the thumbnail's shape.
    """
    height, width = background.shape[:2]
    heat = np.asarray(Image.fromarray(scale.heat(values.astype(np.float32))).resize((width, height)))
    above = heat > 0.5 if scale.threshold is not None else np.zeros_like(heat, bool)
    drawn = draw(background, Prediction(0.0, bool(above.any()), heat, above, None))
    truth = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    drawn[truth & ~binary_erosion(truth)] = MASK_COLOUR
    return drawn


def encode(values: NDArray[np.uint8]) -> Picture:
    """Encode a thumbnail as WebP."""
    return _picture(Image.fromarray(values), "WEBP", quality=_QUALITY, method=4)


def encode_mask(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> Picture:
    """Encode a mask as a two-coloured PNG of a thumbnail's height and width."""
    small = Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return _picture(small, "PNG", optimize=True)


def thumbnail_or_reason(path: Path) -> NDArray[np.uint8] | str:
    """Read a thumbnail, or say in a few words why there is none."""
    try:
        return read_thumbnail(path)
    except DataError:
        return "The image file cannot be read." if path.exists() else "The image file is gone."


def _picture(image: Image.Image, kind: str, **options: int | bool) -> Picture:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{kind.lower()};base64,{content}", image.width, image.height)
