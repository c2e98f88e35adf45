"""The detector beside the camera: an exported model run by OpenVINO."""

import ctypes
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray

from mixedteacher_edge import graph as graphs
from mixedteacher_edge.decoding import RGB, ImageSource, image_name, shrink, to_rgb
from mixedteacher_edge.errors import ConfigurationError, DataError, ExportedModelError
from mixedteacher_edge.record import ModelRecord, check_files, read_record

HINTS = ("LATENCY", "THROUGHPUT")
PRECISIONS = ("f32", "auto")
THRESHOLD = 0.5
CACHED_SIZES = 64  # OpenVINO keeps something of every size of images: 5,000 by default, a megabyte each
LARGE = 2**22  # pixels from which an image is resized before the graph, which takes 50 bytes for each
_SETTLED = 0.05  # seconds after which OpenVINO's threads rest
_ROUNDING = 0.01  # of a score near 1, in bfloat16

Named: TypeAlias = tuple[str, ImageSource]
Outputs: TypeAlias = dict[str, NDArray[Any]]
Outcome: TypeAlias = tuple[str, Outputs | DataError]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one image.

    Attributes:
        score: Anomaly score in ``[0, 1]`` like the map.
        label: Whether the image is an alarm: its score is at the threshold or above.
        anomaly_map: float32 of shape ``(H, W)``, of the size at which the model works.
        mask: bool of shape ``(H, W)``, the pixels at the threshold or above.
        p_value: How likely a good image has a score at least as high, in ``(0, 1]``; ``None`` for a model that was not
            calibrated on good images.
        threshold: Score from which on the image is an alarm; 0.5 unless set otherwise.
    """

    score: float
    label: bool
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.bool_]
    p_value: float | None
    threshold: float = THRESHOLD


@dataclass(frozen=True)
class StreamItem:
    """One image of a stream.

    Attributes:
        name: Path or given name of the image, else its running number from 0.
        prediction: What the detector says; ``None`` if the image cannot be used.
        error: Why it cannot be used, in one sentence; ``None`` if it can.
    """

    name: str
    prediction: Prediction | None
    error: str | None


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

    def run(self, images: Iterable[Named], queue_size: int | None = None) -> Generator[Outcome, None, None]:
        """Give the graph's outputs for each image.

        Args:
            images: Names and images. At most ``queue_size`` are read ahead.
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

    def _fitting(self, name: str, image: ImageSource, copy: bool) -> RGB | DataError:
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


class EdgeDetector:
    """An exported model, ready to judge images. It may be used from several threads, and in a forked child.

    The first image of either kind, 8-bit or floating-point, takes longer: the model is compiled for it.

    Args:
        model: ``.xml`` file (or its ``.bin``), or ``.onnx`` file. Its record is checked against the files if it has
            one.
        device: OpenVINO's device, such as ``CPU``, ``GPU`` or ``AUTO``.
        performance_hint: ``LATENCY`` for one image as soon as possible, ``THROUGHPUT`` for as many as possible.
        cache: Folder for compiled models, so that the next start need not compile. ``"auto"`` takes
            ``.openvino_cache`` beside the model; ``None`` keeps nothing. A folder that cannot be written is not used.
        precision: ``f32``, or ``auto`` for what OpenVINO prefers: on processors with bfloat16 it computes in that,
            faster, and loses some of the small differences that the anomaly map is made of.
        num_threads: Threads of the CPU; all by default.
        threshold: Score from which on an image is an alarm, above 0 and below 1; the model's own, 0.5, by default.
            Masks keep the model's.
        bits: Bits that the values of a 16-bit image use, as 12; what the record says, else 16, by default.
        max_pixels: Most pixels that a file may have; 500 million by default.

    Attributes:
        record: The model's record; ``None`` if it has none.
        read: :func:`~mixedteacher_edge.decoding.to_rgb` with ``bits`` and ``max_pixels``.

    Raises:
        ExportedModelError: If the model's files are missing, damaged or not the recorded ones, or if the model was
            exported without thresholds.
        ConfigurationError: If another argument has a value that is not one of its choices.
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "CPU",
        performance_hint: Literal["LATENCY", "THROUGHPUT"] = "LATENCY",
        cache: str | Path | None = "auto",
        precision: Literal["f32", "auto"] = "f32",
        num_threads: int | None = None,
        threshold: float | None = None,
        bits: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        core = openvino.Core()
        properties = _properties(device, performance_hint, precision, num_threads)
        if threshold is not None and not 0 < threshold < 1:
            msg = f"threshold is {threshold}: give a score above 0 and below 1; the model's own threshold is 0.5."
            raise ConfigurationError(msg)
        graphs.check_device(core, device)
        path = graphs.model_file(model)
        self.record: ModelRecord | None = read_record(path) if path.suffix == ".xml" else None
        if self.record is None:
            logger.warning("There is no record of %s: whether its files belong together cannot be checked.", path)
        elif self.record.thresholds is None:
            msg = f"{path} was exported before its thresholds were found: calibrate it ('mixedteacher calibrate')."
            raise ExportedModelError(msg)
        else:
            bits = bits or self.record.bits
        with ThreadPoolExecutor(1) as background:
            checking = None if self.record is None else background.submit(check_files, self.record, path)
            try:
                graph = graphs.read_file(core, path)
            finally:
                if checking is not None:  # tells more of a damaged file than OpenVINO does
                    checking.result()
        graphs.check_outputs(graph, path)
        graphs.set_single_image(graph, path)
        cached = graphs.cache_folder(path, cache)
        size = self.record.image_size if self.record else None
        self.read = partial(to_rgb, bits=bits, max_pixels=max_pixels)
        self._runner = ImageRunner(core, graph, device, properties, cached, size, self.read)
        self._threshold = threshold

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that the record names or the input is fixed to; ``None`` if neither does."""
        return (self.record.image_size if self.record else None) or self._runner.fixed_size

    def predict(self, image: ImageSource) -> Prediction:
        """Judge one image.

        Args:
            image: What :func:`~mixedteacher_edge.decoding.to_rgb` takes: a path, encoded bytes, a Pillow image, or an
                array of uint8, uint16, or floating-point values in ``[0, 1]``.

        Raises:
            DataError: If the image cannot be used.
        """
        (item,) = self._items([(image_name(image), image)], 1)
        return _prediction_of(item)

    def predict_batch(self, images: Sequence[ImageSource] | NDArray[Any]) -> list[Prediction]:
        """Judge some images, several at a time where the device can.

        Args:
            images: Images that :meth:`predict` takes, or an array of shape ``(N, H, W, C)``.

        Returns:
            One prediction for each image, equal to that of :meth:`predict`.

        Raises:
            DataError: If an image cannot be used.
        """
        with closing(self._items(images, None)) as items:
            return [_prediction_of(item) for item in items]

    def stream(self, images: Iterable[ImageSource | Named], queue_size: int | None = None) -> Iterator[StreamItem]:
        """Judge images as they come, in their order; decoding overlaps inference.

        An item comes once ``queue_size`` further images were read, or ``images`` has ended. Where the answer to the
        last image must not wait for the next one, call :meth:`predict`.

        Args:
            images: Images that :meth:`predict` takes, or pairs of a name and an image. It is read as the items are
                taken, at most ``queue_size`` images ahead.
            queue_size: Most images in progress, 1 or more; what OpenVINO finds best by default.

        Returns:
            Iterator over one item for each image. An image that cannot be used is an item with an error, and the
            stream goes on. An error of ``images`` itself ends it, behind the items of all images before.

        Raises:
            ConfigurationError: If ``queue_size`` is below 1.
        """
        if queue_size is not None and queue_size < 1:
            msg = f"queue_size is {queue_size}: give 1 or more."
            raise ConfigurationError(msg)
        return self._items(images, queue_size)

    def _items(
        self, images: Iterable[ImageSource | Named], queue_size: int | None
    ) -> Generator[StreamItem, None, None]:
        with closing(self._runner.run(_named(images), queue_size)) as results:
            for name, outputs in results:
                if isinstance(outputs, DataError):
                    yield StreamItem(name, None, str(outputs))
                else:
                    yield StreamItem(name, self._prediction(name, outputs), None)

    def _prediction(self, name: str, outputs: Outputs) -> Prediction:
        score = float(outputs["pred_score"].item())
        if not math.isfinite(score):
            msg = f"The model's score of the image {name} is {score}: use precision 'f32', or train the model again."
            raise ExportedModelError(msg)
        # Without thresholds, anomalib's graph takes every raw score but 0 for a defect.
        if self.record is None and not -_ROUNDING <= score <= 1 + _ROUNDING:
            msg = (
                f"The model has no thresholds, or does not scale its scores by them (that of the image {name} is "
                f"{score:.6g}, not in [0, 1]): train it with validation images and a post-processor that normalises, "
                "or calibrate its checkpoint ('mixedteacher calibrate'), and export it again."
            )
            raise ExportedModelError(msg)
        anomaly_map, mask = (outputs[key].reshape(outputs[key].shape[-2:]) for key in ("anomaly_map", "pred_mask"))
        return Prediction(
            score=score,
            label=bool(outputs["pred_label"].item()) if self._threshold is None else score >= self._threshold,
            anomaly_map=anomaly_map.astype(np.float32, copy=False),
            mask=mask.astype(np.bool_, copy=False),
            p_value=self.record.thresholds.p_value(score) if self.record and self.record.thresholds else None,
            threshold=self._threshold or (self.record.score_threshold if self.record else THRESHOLD),
        )


class _Compiled:
    """What of a runner belongs to one process."""

    def __init__(self) -> None:
        self.compiling = threading.Lock()
        self.variants: dict[bool, _Variant] = {}  # by whether they take uint8

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
    _Compiled.answered = time.monotonic()
    started.variant.idle.append(started.request)
    return name, outputs


def _prediction_of(item: StreamItem) -> Prediction:
    if item.prediction is None:
        raise DataError(item.error)
    return item.prediction


def _unfit(name: str, rgb: RGB, error: RuntimeError) -> DataError:
    height, width, _ = rgb.shape
    return DataError(
        f"The model cannot process the image {name} of {width} x {height} pixels ({graphs.reason(error)}): resize it "
        "to the size that the model was trained at."
    )


def _properties(device: str, performance_hint: str, precision: str, num_threads: int | None) -> dict[str, Any]:
    for name, value, choices in (("performance_hint", performance_hint, HINTS), ("precision", precision, PRECISIONS)):
        if value not in choices:
            msg = f"{name} is {value!r}: choose one of {', '.join(choices)}."
            raise ConfigurationError(msg)
    properties: dict[str, Any] = {"PERFORMANCE_HINT": performance_hint}
    if precision != "auto":
        properties["INFERENCE_PRECISION_HINT"] = precision
    if num_threads is not None:
        if device != "CPU" or num_threads < 1:
            msg = f"num_threads is {num_threads} for the device {device}: give 1 or more, and only for the device CPU."
            raise ConfigurationError(msg)
        properties["INFERENCE_NUM_THREADS"] = num_threads
    return properties


def _named(images: Iterable[ImageSource | Named]) -> Iterator[Named]:
    for number, image in enumerate(images):
        if isinstance(image, tuple):
            yield image
        else:
            yield (str(image) if isinstance(image, (str, Path)) else str(number)), image


def _errors_as_items(images: Iterable[Named]) -> Iterator[Named | Exception]:
    try:
        yield from images
    except Exception as error:  # whatever a camera's or a user's reader raises
        yield error
