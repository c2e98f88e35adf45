"""A web that passes under a line camera, without an end."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixedteacher_edge.detector import EdgeDetector, Prediction
from mixedteacher_edge.errors import ConfigurationError, DataError
from mixedteacher_edge.tiled import Lines, TiledRunner
from mixedteacher_edge.tiling import STRIDE

NAME = "the line scan"


@dataclass(frozen=True)
class LineBlock:
    """What the detector says of some lines.

    Attributes:
        first: Number of the first line, from 0.
        last: Number of the line behind the last one.
        prediction: Its map and mask ``(lines / 4, W / 4)`` begin at ``first``.
    """

    first: int
    last: int
    prediction: Prediction


class LineScan:
    """Judges lines as they come; it keeps those of a tile, however many come.

    A block's answer comes when two tiles of lines behind it have come, or the lines have ended. With the performance
    hint ``THROUGHPUT`` it comes later: many tiles are gathered.

    Args:
        detector: A detector of a model that was trained with ``tile_size``.
        lines: Lines ``(W,)`` of a grey camera, or blocks of lines ``(h, W)``, ``(h, W, 1)`` or ``(h, W, 3)``, of the
            types that :meth:`EdgeDetector.predict` takes.
        block: Lines that are judged together, a multiple of 4; those of the record's budget if it counts lines, else
            as many as lie between the starts of two tiles.

    Raises:
        ConfigurationError: If the model does not work in tiles, or ``block`` is no multiple of 4.

    Example:
        >>> for block in LineScan(EdgeDetector("model.xml"), camera):  # doctest: +SKIP
        ...     print(block.first, block.last, block.prediction.label)
    """

    def __init__(self, detector: EdgeDetector, lines: Iterable[NDArray[Any]], block: int | None = None) -> None:
        runner = detector.runner
        if not isinstance(runner, TiledRunner):
            msg = "A line scan needs a model that works in tiles: train it with tile_size, such as 256."
            raise ConfigurationError(msg)
        thresholds = detector.record.thresholds if detector.record else None
        counted = thresholds.per if thresholds is not None else None
        usual = counted if isinstance(counted, int) else runner.tiling.step
        self.block: int = usual if block is None else block
        if self.block < 1 or self.block % STRIDE:
            msg = f"block is {self.block} lines: give a multiple of {STRIDE}."
            raise ConfigurationError(msg)
        self._detector, self._runner, self._lines = detector, runner, lines

    def __iter__(self) -> Iterator[LineBlock]:
        """Judge the lines, from where they are.

        Raises:
            DataError: If lines cannot be used. It comes behind all whole blocks, as an error of their source does.
        """
        size, first = self.block // STRIDE, 0
        kept: Lines | None = None
        seen = 0
        failure: Exception | None = None

        def checked() -> Iterator[NDArray[Any]]:
            nonlocal seen, failure
            width = None
            try:
                for lines in self._lines:
                    part = lines[None, :, None] if lines.ndim == 1 else lines[..., None] if lines.ndim == 2 else lines
                    if part.ndim != 3 or part.shape[-1] not in {1, 3} or part.shape[1:] != (width or part.shape[1:]):
                        msg = f"Lines of the shape {lines.shape} do not follow those before: give lines of one width."
                        raise DataError(msg)
                    width = part.shape[1:]
                    seen += len(part)
                    yield part.copy()  # whoever gave it may write the next lines into it
            except Exception as error:  # of a camera, say
                failure = error

        with closing(self._runner.lines([(NAME, checked())])) as found:
            for _, part in found:
                if not isinstance(part, np.ndarray):
                    if part.error is not None:
                        raise part.error
                    break
                kept = part if kept is None else np.concatenate([kept, part])
                while len(kept) >= size:
                    yield self._judged(first, min(first + self.block, seen), kept[:size])
                    kept, first = kept[size:], first + self.block
        if failure is not None:
            raise failure
        if kept is not None and len(kept):
            yield self._judged(first, seen, kept)

    def _judged(self, first: int, last: int, lines: Lines) -> LineBlock:
        name = f"{NAME}, line {first}"
        return LineBlock(first, last, self._detector.prediction(name, self._runner.judge(lines)))
