"""Images of any size, and webs without an end: tile by tile through the model."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray

from mixedteacher_edge import graph as graphs
from mixedteacher_edge.decoding import ImageSource, to_values
from mixedteacher_edge.errors import DataError
from mixedteacher_edge.record import ModelRecord
from mixedteacher_edge.runner import ImageRunner, Named, Outcome, Outputs, Unusable
from mixedteacher_edge.tiling import Mosaic, Place, Tiling, cut

Lines: TypeAlias = NDArray[np.float32]
Blocks: TypeAlias = Iterable[NDArray[Any]]


@dataclass(frozen=True)
class _End:
    """Behind the last lines of an image, or why there will be no more of it."""

    error: DataError | None = None


_NOWHERE = Place(0, 0, 0, 0)  # of an image without tiles


class TiledRunner(ImageRunner):
    """Runs a graph for one tile over the tiles of images and joins their maps. It may be used from several threads."""

    def __init__(
        self,
        core: openvino.Core,
        graph: openvino.Model,
        tiling: Tiling,
        profile: Sequence[float] | None = None,
        max_pixels: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._verdict = graphs.verdict(graph)
        super().__init__(core, graphs.raw(graph), **kwargs)
        self.tiling = tiling
        self._profile = None if profile is None else np.asarray(profile, np.float32)
        self._max_pixels = max_pixels

    def run(self, images: Iterable[Named | Unusable], queue_size: int | None = None) -> Generator[Outcome, None, None]:
        """Give the graph's outputs for each image, the map at a quarter of its height and width; see ImageRunner."""
        sources = ((name, self._read_when_cut(name, image)) for name, image in images)
        parts: list[Lines] = []
        with closing(self.lines(sources, queue_size)) as found:
            for name, part in found:
                if isinstance(part, np.ndarray):
                    parts.append(part)
                elif part.error is not None:
                    parts = []
                    yield name, part.error
                else:
                    parts = [np.concatenate(parts)]
                    yield name, self.judge(parts.pop())

    def _read_when_cut(self, name: str, image: ImageSource | DataError) -> Blocks:
        if isinstance(image, DataError):
            raise image
        yield to_values(image, name, self._max_pixels)

    def lines(
        self, sources: Iterable[tuple[str, Blocks]], queue_size: int | None = None
    ) -> Generator[tuple[str, Lines | _End], None, None]:
        """Give the raw map of images that come in blocks of lines.

        Args:
            sources: Names, and images as arrays ``(h, W, C)``, block by block from above.
            queue_size: Most tiles in progress; what OpenVINO finds best by default.

        Yields:
            Name and lines ``(h, W / 4)`` of the map, as soon as they are known, then name and the end.
        """
        expected: deque[tuple[str, Place | _End]] = deque()

        def tiles() -> Iterator[Named | Unusable]:
            for name, blocks in sources:
                try:
                    for place, values in cut(blocks, self.tiling):
                        expected.append((name, place))
                        yield name, values
                except DataError as error:
                    expected.append((name, _NOWHERE))
                    yield name, error
                expected.append((name, _End()))

        mosaic: Mosaic | None = None
        failed = False

        def ends() -> Iterator[tuple[str, Lines | _End]]:
            nonlocal mosaic, failed
            while expected and isinstance(end := expected[0][1], _End):
                name, _ = expected.popleft()
                if not failed:
                    if mosaic is not None:
                        yield name, mosaic.rest()
                    yield name, end
                mosaic, failed = None, False

        with closing(super().run(tiles(), queue_size)) as outcomes:
            for _, outputs in outcomes:
                yield from ends()  # of the image before
                name, place = expected.popleft()
                assert isinstance(place, Place)
                try:
                    if isinstance(outputs, DataError):
                        raise outputs
                    mosaic = mosaic or Mosaic(place.image_width, self.tiling, self._profile)
                    lines = mosaic.add(place, outputs["anomaly_map"][0, 0])
                except DataError as error:
                    if not failed:  # at once: the image, or the web, may have no end
                        failed = True
                        yield name, _End(error)
                else:
                    if not failed:
                        yield name, lines
                yield from ends()
        yield from ends()

    def judge(self, lines: Lines) -> Outputs:
        """Give the outputs for a raw map ``(H, W)``, whose maximum is the score."""
        with self._compiled.compiling:
            if self._compiled.verdict is None:
                self._compiled.verdict = graphs.compile_graph(self._core, self._verdict, *self._how)
            verdict = self._compiled.verdict
        values = [lines.max().reshape(1, 1), lines[None, None]]
        result = verdict.create_infer_request().infer(values, share_inputs=True)
        self.note_answer()
        return {name: result[position] for name, position in graphs.output_positions(verdict).items()}


def make_runner(
    core: openvino.Core, graph: openvino.Model, record: ModelRecord | None, max_pixels: int | None = None, **kwargs: Any
) -> ImageRunner:
    """Make what runs a graph as its record says; see :class:`ImageRunner` and :class:`TiledRunner`."""
    if record is not None and record.tile_size is not None:
        return TiledRunner(core, graph, Tiling(record.tile_size), record.profile, max_pixels, **kwargs)
    return ImageRunner(core, graph, image_size=record.image_size if record else None, **kwargs)
