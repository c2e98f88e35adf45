"""The detector beside the camera: an exported model run by OpenVINO."""

import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray

from anomalib_mixedteacher.decoding import ImageSource, image_name, to_rgb
from anomalib_mixedteacher.edge import loading
from anomalib_mixedteacher.edge.exported_model import ExportedModel
from anomalib_mixedteacher.edge.inference import Prediction, Started, Variant
from anomalib_mixedteacher.edge.record import ModelRecord, parse_record
from anomalib_mixedteacher.errors import ConfigurationError, DataError, ExportedModelError

HINTS = ("LATENCY", "THROUGHPUT")
PRECISIONS = ("f32", "auto")

Named: TypeAlias = tuple[str, ImageSource]
Outcome: TypeAlias = tuple[str, Prediction | DataError]

logger = logging.getLogger(__name__)


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


class EdgeDetector:
    """An exported model, ready to judge images. It may be used from several threads.

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

    Attributes:
        record: The model's record; ``None`` if it has none.

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
    ) -> None:
        core = openvino.Core()
        properties = _properties(device, performance_hint, precision, num_threads)
        loading.check_device(core, device)
        path = loading.model_file(model)
        self.record: ModelRecord | None = parse_record(path) if path.suffix == ".xml" else None
        if self.record is None:
            logger.warning("There is no record of %s: whether its files belong together cannot be checked.", path)
        if self.record is not None and self.record.thresholds is None:
            msg = f"{path} was exported before its thresholds were found: calibrate it ('mixedteacher calibrate')."
            raise ExportedModelError(msg)
        self._model = ExportedModel(core, path, self.record, device, properties, loading.cache_folder(path, cache))
        calibration = self.record.calibration if self.record else None
        self._calibration = np.asarray(calibration.scores, dtype=np.float64) if calibration else None
        self._variants: dict[bool, Variant] = {}  # by whether they take uint8
        self._compiling = threading.Lock()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that the record names or the input is fixed to; ``None`` if neither does."""
        return (self.record.image_size if self.record else None) or self._model.fixed_size

    def predict(self, image: ImageSource) -> Prediction:
        """Judge one image.

        Args:
            image: What :func:`~anomalib_mixedteacher.decoding.to_rgb` takes: a path, encoded bytes, a Pillow image, or
                an array of uint8, uint16, or floating-point values in ``[0, 1]``.

        Raises:
            DataError: If the image cannot be used.
        """
        name = image_name(image)
        rgb = self._rgb(image, name)
        return self._variant(rgb).start(rgb, name).result()

    def predict_batch(self, images: Sequence[ImageSource] | NDArray[Any]) -> list[Prediction]:
        """Judge some images, several at a time where the device can.

        Args:
            images: Images that :meth:`predict` takes, or an array of shape ``(N, H, W, C)``.

        Returns:
            One prediction for each image, equal to that of :meth:`predict`.

        Raises:
            DataError: If an image cannot be used.
        """
        predictions = []
        with closing(self._run(_named(images), None)) as results:
            for _, result in results:
                if isinstance(result, DataError):
                    raise result
                predictions.append(result)
        return predictions

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

    def _items(self, images: Iterable[ImageSource | Named], queue_size: int | None) -> Iterator[StreamItem]:
        with closing(self._run(_named(images), queue_size)) as results:
            for name, result in results:
                if isinstance(result, DataError):
                    yield StreamItem(name, None, str(result))
                else:
                    yield StreamItem(name, result, None)

    def _run(self, images: Iterable[Named], queue_size: int | None) -> Generator[Outcome, None, None]:
        # A queue of started requests rather than OpenVINO's AsyncInferQueue, which calls back in any order: waiting
        # for the oldest one keeps the order and bounds the number in progress at once.
        queue: deque[tuple[str, Started | DataError]] = deque()
        failure: Exception | None = None
        try:
            for item in _errors_as_items(images):
                if isinstance(item, Exception):
                    failure = item
                    break
                name, image = item
                rgb = self._for_queue(image, name)
                oldest = None
                if len(queue) >= (queue_size or self._best_queue_size()):
                    oldest = _outcome(*queue.popleft())
                queue.append((name, self._try_start(rgb, name)))
                if oldest is not None:  # only now, so that the device has work while the outcome is used
                    yield oldest
            while queue:
                yield _outcome(*queue.popleft())
            if failure is not None:  # an unplugged camera, say: what it had delivered is judged first
                raise failure
        finally:
            for _, started in queue:
                if isinstance(started, Started):
                    started.abandon()

    def _for_queue(self, image: ImageSource, name: str) -> NDArray[Any] | DataError:
        try:
            rgb = self._rgb(image, name)
        except DataError as error:
            return error
        # Whoever gave an array may write the next image into it while this one is in progress.
        return rgb.copy() if isinstance(image, np.ndarray) and np.may_share_memory(rgb, image) else rgb

    def _try_start(self, rgb: NDArray[Any] | DataError, name: str) -> Started | DataError:
        try:
            return rgb if isinstance(rgb, DataError) else self._variant(rgb).start(rgb, name)
        except DataError as error:
            return error

    def _rgb(self, image: ImageSource, name: str) -> NDArray[Any]:
        rgb = to_rgb(image, name)
        loading.check_fits((rgb.shape[0], rgb.shape[1]), self._model.fixed_size, name)
        return rgb

    def _variant(self, rgb: NDArray[Any]) -> Variant:
        bytes_input = rgb.dtype == np.uint8
        with self._compiling:
            if bytes_input not in self._variants:
                compiled = self._model.compiled(bytes_input)
                self._variants[bytes_input] = Variant(compiled, self._calibration, self.record is not None)
            return self._variants[bytes_input]

    def _best_queue_size(self) -> int:
        return max((variant.best_queue_size for variant in self._variants.values()), default=1)


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


def _outcome(name: str, started: Started | DataError) -> Outcome:
    if isinstance(started, DataError):
        return name, started
    try:
        return name, started.result()
    except DataError as error:
        return name, error
