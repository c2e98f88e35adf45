"""Heat maps over images, drawn with numpy and Pillow."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixedteacher_edge.decoding import ImageSource, to_rgb
from mixedteacher_edge.detector import Prediction
from mixedteacher_edge.errors import DataError
from mixedteacher_edge.sources import IMAGES

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
COLORS = ((0, 0, 128), (0, 128, 255), (128, 255, 128), (255, 160, 0), (160, 0, 0))  # blue to red, at the levels
OPACITY = 0.4
CONTOUR = (255, 255, 255)
CONTOUR_SHARE = 300  # the contour is one pixel wide for each such number of pixels of the shorter side


class OverlayFolder:
    """A folder of heat maps, one PNG for each image, under the image's stem.

    Args:
        folder: The folder; it is made if need be. Files of equal names in it are replaced.
        sources: Where the images come from, as in :func:`~mixedteacher_edge.sources.open_sources`.

    Raises:
        DataError: If it cannot be made, or if heat maps in it would replace images, or be taken for images.
    """

    def __init__(self, folder: Path, sources: Sequence[str] = ()) -> None:
        for source in map(Path, sources):
            images = source if source.is_dir() else source.parent
            below = folder.resolve().is_relative_to(images.resolve())
            if (source.is_dir() and below) or (source.is_file() and folder.resolve() == images.resolve()):
                msg = (
                    f"Heat maps in {folder} would lie among the images of {source}: give a folder outside with "
                    "--overlays."
                )
                raise DataError(msg)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"Cannot make the folder {folder} ({error.strerror}): give another one with --overlays."
            raise DataError(msg) from error
        self._folder = folder
        self._used: set[str] = set()

    def write(self, name: str, image: ImageSource, prediction: Prediction) -> None:
        """Draw one image's heat map and write it.

        Args:
            name: Name or path of the image. Where stems collide, a number is added.
            image: The image.
            prediction: What the detector says of it.

        Raises:
            DataError: If the image cannot be read any more, or the heat map cannot be written.
        """
        drawn = Image.fromarray(draw(image, prediction))
        path = self._folder / f"{self._unique(name)}.png"
        try:
            drawn.save(path)
        except OSError as error:
            msg = f"Cannot write {path} ({error.strerror or error}): free space there, or give another --overlays."
            raise DataError(msg) from error

    def _unique(self, name: str) -> str:
        path = Path(name)
        stem = path.stem if path.suffix.lower() in IMAGES else re.sub("[:#]", "_", path.name)
        unique, number = stem, 1
        while unique.casefold() in self._used:  # some file systems do not tell a.png from A.png
            number += 1
            unique = f"{stem}_{number}"
        self._used.add(unique.casefold())
        return unique


def draw(image: ImageSource, prediction: Prediction) -> NDArray[np.uint8]:
    """Lay the anomaly map over an image, with the contour of the mask.

    Args:
        image: The image, as the detector took it.
        prediction: What the detector says of it.

    Returns:
        uint8 array of shape ``(H, W, 3)``, of the image's size.
    """
    rgb = to_rgb(image)
    values = rgb.astype(np.float64) * (1 if rgb.dtype == np.uint8 else 255)
    height, width = rgb.shape[:2]
    heat = _resized(prediction.anomaly_map, (width, height), Image.Resampling.BILINEAR)
    mask = _resized(prediction.mask.astype(np.float32), (width, height), Image.Resampling.NEAREST) > 0.5
    color = np.stack([np.interp(heat, LEVELS, channel) for channel in zip(*COLORS, strict=True)], axis=-1)
    blended = (1 - OPACITY) * values + OPACITY * color
    blended[mask & ~_eroded(mask, 1 + min(height, width) // CONTOUR_SHARE)] = CONTOUR
    return np.rint(blended).astype(np.uint8)


def _resized(plane: NDArray[np.float32], size: tuple[int, int], method: Image.Resampling) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(plane).resize(size, method))


def _eroded(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Take a rim off a mask; the image's border counts as outside, so that every region has a closed contour."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask
