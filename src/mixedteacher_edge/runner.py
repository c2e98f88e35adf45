"""A graph run over images, several at a time: the requests, the order, forks."""

import ctypes
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray

from mixedteacher_edge import graph as graphs
from mixedteacher_edge.decoding import RGB, ImageSource, Named, shrink, to_rgb
from mixedteacher_edge.errors import DataError

CACHED_SIZES = 64  # OpenVINO keeps something of every size of images: 5,000 by default, a megabyte each
LARGE = 2**22  # pixels from which an image is resized before the graph, which takes 50 bytes for each
_SETTLED = 0.05  # seconds after which OpenVINO's threads rest

Unusable: TypeAlias = tuple[str, DataError]
Outputs: TypeAlias = dict[str, NDArray[Any]]
Outcome: TypeAlias = tuple[str, Outputs | DataError]


class ImageRunner:
    """Runs a graph over images, several at a time and in their order. It may be used from several threads.

    The graph is compiled when the first image of either kind comes, 8-bit or floating-point, and once more in a forked
    child: threads, and with them OpenVINO's, do not outlive a fork. Fork while no thread judges images.

    Args:
        core: OpenVINO.
        graph: Graph with an input of shape ``(1, 3, H, W)``.
        device: Device that runs it.
        properties: OpenVINO's properties.
        cache: Folder for compiled models, or ``None``.
        image_size: Height and width to which the graph resizes images of any size, or ``None``.
        read: Makes an RGB array of an image and its name, as :func:`~mixedteacher_edge.decoding.to_rgb` does.
    """

    def __init__(
        self,
        core: openvino.Core,
        graph: openvino.Model,
        device: str,
        properties: dict[str, Any],
        cache: Path | None = None,
        image_size: tuple[int, int] | None = None,
        read: Callable[[ImageSource, str], RGB] = to_rgb,
    ) -> None:
        self.fixed_size = graphs.fixed_size(graph)
        self._core = core
        self._graph = graph
        # the second one is read once in a process, when the first model runs
        bounded = {"CPU_RUNTIME_CACHE_CAPACITY": str(CACHED_SIZES)} if device == "CPU" else {}
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(CACHED_SIZES))
        self._how = (device, properties | bounded, cache)
        self._image_size = image_size
        self._read = read
        self._compiled = _Compiled()
        _RUNNERS.add(self)

    def run(self, images: Iterable[Named | Unusable], queue_size: int | None = None) -> Generator[Outcome, None, None]:
        """Give the graph's outputs for each image.

        Args:
            images: Names and images, or why an image cannot be used. At most ``queue_size`` are read ahead.
            queue_size: Most images in progress; what OpenVINO finds best by default.

        Yields:
            Name, and copies of the outputs by their names, or why the image cannot be used. An error of ``images``
            itself comes behind the outputs of all images before.
        """
        # A queue of started requests rather than OpenVINO's AsyncInferQueue, which calls back in any order: waiting
        # for the oldest one keeps the order and bounds the number in progress at once.
        queue: deque[tuple[str, _Started | DataError]] = deque()
        failure: Exception | None = None
        try:
            for item in _errors_as_items(images):
                if isinstance(item, Exception):
                    failure = item
                    break
                name, image = item
                rgb = self._fitting(name, image, copy=queue_size != 1)
                oldest = None
                if len(queue) >= (queue_size or self._compiled.best_queue_size):
                    oldest = _finished(*queue.popleft())
                queue.append((name, rgb if isinstance(rgb, DataError) else self._start(rgb, name)))
                if oldest is not None:  # only now, so that the device has work while the outcome is used
                    yield oldest
            while queue:
                yield _finished(*queue.popleft())
            if failure is not None:  # an unplugged camera, say: what it had delivered is judged first
                raise failure
        finally:
            for _, started in queue:
                if isinstance(started, _Started):
                    with suppress(RuntimeError):
                        started.request.wait()  # OpenVINO reads the image until then

    def _fitting(self, name: str, image: ImageSource | DataError, copy: bool) -> RGB | DataError:
        if isinstance(image, DataError):
            return image
        try:
            rgb = self._read(image, name)
        except DataError as error:
            return error
        height, width = rgb.shape[:2]
        if self.fixed_size is not None and self.fixed_size != (height, width):
            return DataError(
                f"The image {name} is {width} x {height} pixels, but the model takes {self.fixed_size[1]} x "
                f"{self.fixed_size[0]}: resize the image, or export the model without a fixed input size."
            )
        if self._image_size is not None and self.fixed_size is None and height * width > LARGE:
            return shrink(rgb, self._image_size)
        # Whoever gave an array may write the next image into it while this one is in progress.
        return rgb.copy() if copy and isinstance(image, np.ndarray) and np.may_share_memory(rgb, image) else rgb

    def _start(self, rgb: RGB, name: str) -> "_Started | DataError":
        variant = self._variant(rgb.dtype == np.uint8)
        try:
            request = variant.idle.pop()
        except IndexError:
            request = variant.compiled.create_infer_request()
        try:
            request.start_async({0: rgb[None]}, share_inputs=True)
        except RuntimeError as error:
            return _unfit(name, rgb, error)
        return _Started(variant, request, rgb)

    def _variant(self, bytes_input: bool) -> "_Variant":
        with self._compiled.compiling:
            variants = self._compiled.variants
            if bytes_input not in variants:
                graph = graphs.with_image_input(self._graph, bytes_input)
                variants[bytes_input] = _Variant(graphs.compile_graph(self._core, graph, *self._how))
            return variants[bytes_input]

    @staticmethod
    def note_answer() -> None:
        """Note that OpenVINO has just answered; a fork waits until its threads rest."""
        _Compiled.answered = time.monotonic()

    def leave_to_parent(self) -> None:
        """Compile anew in a forked child, where deleting the parent's models would wait for the parent's threads."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._compiled))
        self._compiled = _Compiled()


_RUNNERS: weakref.WeakSet[ImageRunner] = weakref.WeakSet()


def _before_fork() -> None:
    time.sleep(max(0.0, _Compiled.answered + _SETTLED - time.monotonic()))


def _in_child() -> None:
    for runner in _RUNNERS:
        runner.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


class _Compiled:
    """What of a runner belongs to one process."""

    def __init__(self) -> None:
        self.compiling = threading.Lock()
        self.variants: dict[bool, _Variant] = {}  # by whether they take uint8
        self.verdict: openvino.CompiledModel | None = None  # of an image whose tiles were run

    answered = 0.0
    """When a runner last did; OpenVINO's threads may hold a lock for a moment longer."""

    @property
    def best_queue_size(self) -> int:
        return max((variant.best_queue_size for variant in self.variants.values()), default=1)


class _Variant:
    """A graph compiled for one type of images, and its requests that are idle."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.best_queue_size = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.positions = graphs.output_positions(compiled)
        self.idle: list[openvino.InferRequest] = []
        self.compiled = compiled


@dataclass(frozen=True)
class _Started:
    """An inference in progress; OpenVINO reads its image, which is not copied, until the end."""

    variant: _Variant
    request: openvino.InferRequest
    rgb: RGB


def _finished(name: str, started: _Started | DataError) -> Outcome:
    if isinstance(started, DataError):
        return name, started
    try:
        started.request.wait()
    except RuntimeError as error:
        return name, _unfit(name, started.rgb, error)
    tensors = {key: started.request.get_output_tensor(at) for key, at in started.variant.positions.items()}
    outputs = {key: tensor.data.copy() for key, tensor in tensors.items()}  # the tensors belong to the request
    ImageRunner.note_answer()
    started.variant.idle.append(started.request)
    return name, outputs


def _unfit(name: str, rgb: RGB, error: RuntimeError) -> DataError:
    height, width, _ = rgb.shape
    return DataError(
        f"The model cannot process the image {name} of {width} x {height} pixels ({graphs.reason(error)}): resize it "
        "to the size that the model was trained at."
    )


def _errors_as_items(images: Iterable[Named | Unusable]) -> Iterator[Named | Unusable | Exception]:
    try:
        yield from images
    except Exception as error:  # whatever a camera's or a user's reader raises
        yield error
