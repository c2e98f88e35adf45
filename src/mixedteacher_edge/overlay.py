"""Heat maps over images, drawn with numpy and Pillow."""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixedteacher_edge.decoding import RGB, ImageSource, to_rgb
from mixedteacher_edge.detector import Prediction
from mixedteacher_edge.errors import DataError
from mixedteacher_edge.sources import IMAGES

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
COLORS = ((0, 0, 128), (0, 128, 255), (128, 255, 128), (255, 160, 0), (160, 0, 0))  # blue to red, at the levels
OPACITY = 0.4
CONTOUR = (255, 255, 255)
CONTOUR_SHARE = 300  # the contour is one pixel wide for each such number of pixels of the shorter side
_STRIP = 2**18  # pixels that are drawn at a time
_TABLE = np.stack([np.interp(np.linspace(0, 1, 256), LEVELS, c) for c in zip(*COLORS, strict=True)], -1, dtype="f4")


class OverlayFolder:
    """A folder of heat maps, one PNG for each image, under the image's path below its source.

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
        self._make(folder)
        self._folder = folder
        self._roots = [source for source in map(Path, sources) if source.is_dir()]
        self._used: set[str] = set()

    def write(self, name: str, image: ImageSource, prediction: Prediction) -> Path:
        """Draw one image's heat map and write it; where names collide, a number is added.

        Raises:
            DataError: If the image cannot be read any more, or the heat map cannot be written.
        """
        rgb = to_rgb(image)
        path = self._path(name)
        self._make(path.parent)
        try:
            with path.open("wb") as file:
                write_png(file, rgb.shape[:2], strips(rgb, prediction))
        except OSError as error:
            msg = f"Cannot write {path} ({error.strerror}): free space there, or give another --overlays."
            raise DataError(msg) from error
        return path

    @staticmethod
    def _make(folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"Cannot make the folder {folder} ({error.strerror}): give another one with --overlays."
            raise DataError(msg) from error

    def _path(self, name: str) -> Path:
        path = Path(name)
        below = next((path.parent.relative_to(root) for root in self._roots if path.is_relative_to(root)), Path())
        stem = path.stem if path.suffix.lower() in IMAGES else re.sub("[:#]", "_", path.name)
        unique, number = below / stem, 1
        while str(unique).casefold() in self._used:  # some file systems do not tell a.png from A.png
            number += 1
            unique = below / f"{stem}_{number}"
        self._used.add(str(unique).casefold())
        return self._folder / f"{unique}.png"


def draw(image: ImageSource, prediction: Prediction) -> NDArray[np.uint8]:
    """Lay the anomaly map over an image, with the contour of the mask.

    Args:
        image: The image, as the detector took it.
        prediction: What the detector says of it.

    Returns:
        uint8 array of shape ``(H, W, 3)``, of the image's size.
    """
    return np.concatenate(list(strips(to_rgb(image), prediction)))


def strips(rgb: RGB, prediction: Prediction) -> Iterator[NDArray[np.uint8]]:
    """Draw an image as :func:`draw` does, strip by strip: as a whole it would take eight times its memory."""
    height, width = rgb.shape[:2]
    heat = Image.fromarray(prediction.anomaly_map)
    rim = _Rim(prediction.mask, (height, width))
    rows = 1 + _STRIP // width
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height))
        box = (0, heat.height * strip.start / height, heat.width, heat.height * strip.stop / height)
        values = np.asarray(heat.resize((width, strip.stop - strip.start), Image.Resampling.BILINEAR, box=box))
        color = _TABLE[np.rint(values.clip(0, 1) * 255).astype(np.uint8)]
        below = rgb[strip] * np.float32(1 if rgb.dtype == np.uint8 else 255)
        drawn = np.rint(np.float32(1 - OPACITY) * below + np.float32(OPACITY) * color).astype(np.uint8)
        drawn[rim.rows(strip)] = CONTOUR
        yield drawn


def write_png(file: BinaryIO, size: tuple[int, int], rgb: Iterable[NDArray[np.uint8]]) -> None:
    """Write an RGB image that comes in strips ``(h, W, 3)``; Pillow would take another four bytes for each pixel."""

    def chunk(kind: bytes, content: bytes) -> None:
        file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, 2, 0, 0, 0))
    stream = zlib.compressobj(1)  # a third of the time, for files a tenth larger
    for strip in rgb:
        lines = np.ones((len(strip), 1 + 3 * size[1]), np.uint8)  # the 1 stands for differences to the left
        lines[:, 1:] = np.diff(strip, axis=1, prepend=np.uint8(0)).reshape(len(strip), -1)
        chunk(b"IDAT", stream.compress(lines.tobytes()))
    chunk(b"IDAT", stream.flush())
    chunk(b"IEND", b"")


class _Rim:
    """The rim of a mask that is enlarged to an image, each pixel to the nearest one's value.

    What lies outside the image does not belong to the mask, so that every region has a closed contour.
    """

    def __init__(self, mask: NDArray[np.bool_], size: tuple[int, int]) -> None:
        self._mask = np.pad(mask, 1)
        self._size = size
        self._width = 1 + min(size) // CONTOUR_SHARE

    def rows(self, strip: slice) -> NDArray[np.bool_]:
        """Give the rows of a strip of the image."""
        inside = self._at(strip, 0, 0)
        if inside.any():
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                inside &= self._at(strip, down * self._width, right * self._width)
        return self._at(strip, 0, 0) & ~inside

    def _at(self, strip: slice, down: int, right: int) -> NDArray[np.bool_]:
        rows = self._nearest(np.arange(strip.start, strip.stop) + down, 0)
        return self._mask[rows[:, None], self._nearest(np.arange(self._size[1]) + right, 1)]

    def _nearest(self, positions: NDArray[np.intp], axis: int) -> NDArray[np.intp]:
        length = self._mask.shape[axis] - 2
        return np.clip((2 * positions + 1) * length // (2 * self._size[axis]), -1, length) + 1
