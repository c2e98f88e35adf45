"""What the detector says of an image, and the inferences in progress."""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from anomalib_mixedteacher.calibration.conformal import p_value
from anomalib_mixedteacher.edge.loading import output_positions, reason
from anomalib_mixedteacher.errors import DataError, ExportedModelError

_ROUNDING = 0.01  # of a score near 1, in bfloat16


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one image.

    Attributes:
        score: Anomaly score in ``[0, 1]`` like the map; the threshold is 0.5.
        label: Whether the image is an alarm.
        anomaly_map: float32 of shape ``(H, W)``, of the size at which the model works; the threshold is 0.5.
        mask: bool of shape ``(H, W)``, the pixels above the threshold.
        p_value: How likely a good image has a score at least as high, in ``(0, 1]``; ``None`` for a model that was not
            calibrated on good images.
    """

    score: float
    label: bool
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.bool_]
    p_value: float | None


class Variant:
    """A graph compiled for one type of images, and the requests that run it.

    Args:
        compiled: Compiled graph with an input of shape ``(1, H, W, 3)``.
        calibration: Scores of good images, in ascending order, or ``None``.
        has_thresholds: Whether the model is known to have thresholds, as by its record; else its scores must show it.
    """

    def __init__(
        self, compiled: openvino.CompiledModel, calibration: NDArray[np.float64] | None, has_thresholds: bool
    ) -> None:
        self.best_queue_size = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._compiled = compiled
        self._calibration = calibration
        self._has_thresholds = has_thresholds
        self._positions = output_positions(compiled)
        self._idle: list[openvino.InferRequest] = []

    def start(self, rgb: NDArray[Any], name: str) -> "Started":
        """Start an inference and do not wait for it.

        Args:
            rgb: Image of shape ``(H, W, 3)``. It must not change before the inference has ended: it is not copied.
            name: What messages call the image.

        Raises:
            DataError: If the graph cannot process the image.
        """
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            request.start_async({0: rgb[None]}, share_inputs=True)
        except RuntimeError as error:
            raise _unfit(name, rgb, error) from error
        return Started(self, request, rgb, name)

    def give_back(self, request: openvino.InferRequest) -> None:
        """Keep a request that has ended for the next image."""
        self._idle.append(request)

    def prediction(self, request: openvino.InferRequest, name: str) -> Prediction:
        """Copy the outputs of a request that has ended.

        Args:
            request: The request.
            name: What messages call the image.

        Raises:
            ExportedModelError: If the score is not finite, or not scaled by a threshold.
        """
        outputs = {name: request.get_output_tensor(index).data for name, index in self._positions.items()}
        score = float(outputs["pred_score"].item())
        if not math.isfinite(score):
            msg = f"The model's score of the image {name} is {score}: use precision 'f32', or train the model again."
            raise ExportedModelError(msg)
        # Without thresholds, anomalib's graph takes every raw score but 0 for a defect.
        if not self._has_thresholds and not -_ROUNDING <= score <= 1 + _ROUNDING:
            msg = (
                f"The model has no thresholds, or does not scale its scores by them (that of the image {name} is "
                f"{score:.6g}, not in [0, 1]): train it with validation images and a post-processor that normalises, "
                "or calibrate its checkpoint ('mixedteacher calibrate'), and export it again."
            )
            raise ExportedModelError(msg)
        return Prediction(
            score=score,
            label=bool(outputs["pred_label"].item()),
            anomaly_map=_plane(outputs["anomaly_map"], np.float32),
            mask=_plane(outputs["pred_mask"], np.bool_),
            p_value=None if self._calibration is None else float(p_value(score, self._calibration)),
        )


class Started:
    """An inference in progress."""

    def __init__(self, variant: Variant, request: openvino.InferRequest, rgb: NDArray[Any], name: str) -> None:
        self._variant = variant
        self._request = request
        self._rgb = rgb
        self._name = name

    def result(self) -> Prediction:
        """Wait for the prediction.

        Raises:
            DataError: If the graph cannot process the image.
            ExportedModelError: If the score is not finite, or not scaled by a threshold.
        """
        try:
            self._request.wait()
        except RuntimeError as error:
            raise _unfit(self._name, self._rgb, error) from error
        prediction = self._variant.prediction(self._request, self._name)
        self._variant.give_back(self._request)
        return prediction

    def abandon(self) -> None:
        """Wait for the end, since OpenVINO reads the image until then, and drop the result."""
        with suppress(RuntimeError):
            self._request.wait()


def _plane(values: NDArray[Any], dtype: type) -> NDArray[Any]:
    return values.reshape(values.shape[-2:]).astype(dtype)  # astype copies: the tensor belongs to the request


def _unfit(name: str, rgb: NDArray[Any], error: RuntimeError) -> DataError:
    height, width, _ = rgb.shape
    return DataError(
        f"The model cannot process the image {name} of {width} x {height} pixels ({reason(error)}): resize it to the "
        "size that the model was trained at."
    )
