"""Images larger than the model's input: cut into overlapping tiles, whose maps are joined without a seam.

Along each side a tile begins every three quarters of its size, and the last one ends with the image. Where two tiles
overlap, the outer sixteenth of each is dropped: near the border of its input a student fails on good images too. Over
the eighth between them one map fades into the other. An image smaller than a tile is mirrored at its end.

Training, prediction in torch and the runtime beside the camera all use this module.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixedteacher_edge.errors import ConfigurationError, DataError

STRIDE = 4  # pixels of the image along a side of one of the map
_LEVEL = 0.99  # of a column's values on good images
_GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly
_LINES = 256  # of a good image that are looked at for a profile
_LEAST = 1e-6  # of a profile, if good images give nothing at all
_UNIT = 64  # tiles are multiples of it, so that overlap, margin and fade are whole pixels of the map


@dataclass(frozen=True)
class Place:
    """Where a tile lies.

    Attributes:
        top: Its first row in the image.
        left: Its first column.
        rows: How many of its rows are the image's; the others mirror them.
        image_width: Columns of the image.
    """

    top: int
    left: int
    rows: int
    image_width: int


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Args:
        size: Side of a tile in pixels, a multiple of 64.

    Raises:
        ConfigurationError: If it is not.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < _UNIT or self.size % _UNIT:
            msg = f"tile_size must be a multiple of {_UNIT}, such as 256, not {self.size}."
            raise ConfigurationError(msg)

    @property
    def overlap(self) -> int:
        """Pixels that neighbouring tiles share."""
        return self.size // 4

    @property
    def margin(self) -> int:
        """Pixels at a tile's border whose map is dropped where there is a neighbour."""
        return self.size // 16

    @property
    def step(self) -> int:
        """Pixels from the start of one tile to the next."""
        return self.size - self.overlap

    def padded(self, length: int) -> int:
        """Give the length to which a side of ``length`` pixels is mirrored: of a tile at least, and a multiple of 4."""
        return max(self.size, -(-length // STRIDE) * STRIDE)

    def starts(self, length: int, step: int | None = None) -> list[int]:
        """Give where tiles along a side of ``length`` pixels begin, every ``step`` pixels; the last ends with it."""
        return starts(self.padded(length), self.size, step or self.step)

    def places(self, height: int, width: int, step: int | None = None) -> list[Place]:
        """Give where the tiles of an image lie, row by row from the left; see :meth:`starts`."""
        size, lefts = self.size, self.starts(width, step)
        return [Place(top, left, min(size, height - top), width) for top in self.starts(height, step) for left in lefts]

    def sample(self, height: int, width: int, count: int, number: int) -> list[Place]:
        """Give ``count`` of an image's tiles, spread evenly; other ones of an image of another ``number``."""
        places = self.places(height, width)
        count = min(count, len(places))
        first = number * _GOLDEN % 1
        return [places[int((k + first) * len(places) / count)] for k in range(count)]


def starts(length: int, size: int, step: int) -> list[int]:
    """Give where parts of a length begin, every ``step``; the last one ends with it."""
    return [*range(0, length - size, step), length - size]


def pixels(length: int, start: int, count: int) -> slice | NDArray[np.intp]:
    """Give an index for ``count`` pixels from ``start`` on, along a side of ``length`` that is mirrored at its end."""
    if start + count <= length:
        return slice(start, start + count)
    positions = np.arange(start, start + count) % (2 * length)
    return np.minimum(positions, 2 * length - 1 - positions)


def cut(blocks: Iterable[NDArray[Any]], tiling: Tiling) -> Iterator[tuple[Place, NDArray[Any]]]:
    """Cut an image ``(H, W, C)``, or blocks of its lines from above, into tiles, row by row from the left.

    Yields:
        Place and pixels ``(size, size, C)`` of each tile. Those of a row come as soon as its last line has come, and
        lines are kept only until then.
    """
    kept: list[NDArray[Any]] = []
    first, count, due = 0, 0, 0  # the first line that is kept, how many are, and where the next row of tiles begins
    for block in blocks:
        kept.append(block)
        count += len(block)
        while first + count >= due + tiling.size:
            lines = kept[0] if len(kept) == 1 else np.concatenate(kept)
            yield from _row(lines, first, due, tiling)
            kept = [lines[due - first :]]  # the last row of tiles may begin anywhere behind this one
            first, count, due = due, first + count - due, due + tiling.step
    if count:
        lines = np.concatenate(kept)
        last = tiling.padded(first + count) - tiling.size
        if last > first or due == 0:
            yield from _row(lines, first, last, tiling)


def _row(lines: NDArray[Any], first: int, top: int, tiling: Tiling) -> Iterator[tuple[Place, NDArray[Any]]]:
    rows = lines[pixels(len(lines), top - first, tiling.size)]
    height, width = min(tiling.size, first + len(lines) - top), lines.shape[1]
    for left in tiling.starts(width):
        yield Place(top, left, height, width), np.ascontiguousarray(rows[:, pixels(width, left, tiling.size)])


class Mosaic:
    """Joins the maps of tiles, which come row by row from the left, into lines of the image's map.

    Args:
        width: Width of the image in pixels.
        tiling: How it was cut.
        profile: See :func:`web_profile`; the map is divided by it.

    Raises:
        DataError: If the profile is of images of another width.
    """

    def __init__(self, width: int, tiling: Tiling, profile: NDArray[np.float32] | None = None) -> None:
        self._columns = -(-width // STRIDE)
        if profile is not None and len(profile) != self._columns:
            msg = (
                f"An image is {width} pixels wide, the good images were {STRIDE * len(profile)}: train without "
                "standardize=position for images of several widths."
            )
            raise DataError(msg)
        self._profile = np.ones(self._columns, np.float32) if profile is None else profile
        self._tiling = tiling
        self._last = tiling.starts(width)[-1]
        self._row = _Joint(tiling, axis=1)
        self._parts: list[NDArray[np.float32]] = []
        self._rows = _Joint(tiling, axis=0)

    def add(self, place: Place, tile_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next tile's map ``(size / 4, size / 4)``; give the lines ``(h, W / 4)`` that no other will change.

        There are none but behind the last tile of a row.
        """
        self._parts.append(self._row.add(place.left, tile_map))
        if place.left < self._last:
            return np.empty((0, self._columns), np.float32)
        row = np.concatenate([*self._parts, self._row.rest()], axis=1)
        self._row, self._parts = _Joint(self._tiling, axis=1), []
        row = row[: -(-place.rows // STRIDE), : self._columns]
        return self._rows.add(place.top, np.divide(row, self._profile, dtype=np.float32))

    def rest(self) -> NDArray[np.float32]:
        """Give the lines that wait for another row of tiles, when there is none."""
        return self._rows.rest()


def web_profile(maps: Iterable[NDArray[np.float32]], tiling: Tiling) -> NDArray[np.float32]:
    """Give what the maps ``(H / 4, W / 4)`` of good images reach at each position across a web: ``(W / 4,)``, positive.

    It is the 99th percentile of a column's values, or that of the highest column within an overlap on either side,
    since webs wander; the profile's median at least.
    """
    some = [lines[:: -(-len(lines) // _LINES)] for lines in maps]
    levels = np.quantile(np.concatenate(some), _LEVEL, axis=0)
    reach = tiling.overlap // STRIDE
    around = np.lib.stride_tricks.sliding_window_view(np.pad(levels, reach, "edge"), 2 * reach + 1).max(axis=1)
    return np.maximum(around, max(np.median(around), _LEAST)).astype(np.float32)


class _Joint:
    """Joins overlapping pieces along an axis, each faded into the next."""

    def __init__(self, tiling: Tiling, axis: int) -> None:
        overlap, margin = tiling.overlap // STRIDE, tiling.margin // STRIDE
        self._axis = axis
        self._waiting = overlap - margin  # positions that another piece may change
        faded = overlap - 2 * margin
        self._fade = (np.arange(faded, dtype=np.float32)[:, None] + np.float32(0.5)) / np.float32(faded)
        self._tail: NDArray[np.float32] | None = None
        self._done = 0

    def add(self, start: int, piece: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take a piece that begins at pixel ``start``; give what no other piece will change."""
        piece = np.moveaxis(piece, self._axis, 0)[self._done - start // STRIDE :]
        if self._tail is not None:
            piece, before, faded = piece.copy(), self._tail, len(self._fade)
            piece[:faded] = before[:faded] + self._fade * (piece[:faded] - before[:faded])
        ready = max(0, len(piece) - self._waiting)
        self._tail = piece[ready:]
        self._done += ready
        return np.moveaxis(piece[:ready], 0, self._axis)

    def rest(self) -> NDArray[np.float32]:
        """Give what waits for another piece, when there is none."""
        assert self._tail is not None  # there is a piece
        return np.moveaxis(self._tail, 0, self._axis)
