"""The detector beside the camera: an exported model run by OpenVINO."""

import logging
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino
from numpy.typing import NDArray

from mixedteacher_edge import graph as graphs
from mixedteacher_edge.decoding import ImageSource, Named, image_name, to_rgb
from mixedteacher_edge.errors import ConfigurationError, DataError, ExportedModelError
from mixedteacher_edge.record import ModelRecord, check_files, read_record
from mixedteacher_edge.runner import Outputs
from mixedteacher_edge.tiled import TiledRunner, make_runner

HINTS = ("LATENCY", "THROUGHPUT")
PRECISIONS = ("f32", "auto")
THRESHOLD = 0.5
_ROUNDING = 0.01  # of a score near 1, in bfloat16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one image.

    Attributes:
        score: Anomaly score in ``[0, 1]`` like the map.
        label: Whether the image is an alarm: its score is at the threshold or above.
        anomaly_map: float32 of shape ``(H, W)``, of the size at which the model works; where images are cut into tiles,
            of a quarter of the image's height and width.
        mask: bool of shape ``(H, W)``, the pixels at the threshold or above.
        p_value: How likely a good image has a score at least as high, in ``(0, 1]``; a part of a good image, where the
            budget counts parts; ``None`` for a model that was not calibrated on good images.
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
        self.read = partial(to_rgb, bits=bits, max_pixels=max_pixels)
        how = {"device": device, "properties": properties, "cache": cached, "read": self.read}
        self.runner = make_runner(core, graph, self.record, max_pixels, **how)
        self._threshold = threshold

    def predict(self, image: ImageSource) -> Prediction:
        """Judge one image.

        Args:
            image: What :func:`~mixedteacher_edge.decoding.to_rgb` takes: a path, encoded bytes, a Pillow image, or an
                array of uint8, uint16, or floating-point values in ``[0, 1]``.

        Raises:
            DataError: If the image cannot be used.
        """
        one = None if isinstance(self.runner, TiledRunner) else 1  # an image has several tiles
        (item,) = self._items([(image_name(image), image)], one)
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
        with closing(self.runner.run(_named(images), queue_size)) as results:
            for name, outputs in results:
                if isinstance(outputs, DataError):
                    yield StreamItem(name, None, str(outputs))
                else:
                    yield StreamItem(name, self.prediction(name, outputs), None)

    def prediction(self, name: str, outputs: Outputs) -> Prediction:
        """Make a prediction of a graph's outputs for the image of a name."""
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


def _prediction_of(item: StreamItem) -> Prediction:
    if item.prediction is None:
        raise DataError(item.error)
    return item.prediction


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
