"""Thresholds from the scores of good images, and the scale on which they are 0.5; without torch."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalib_mixedteacher.calibration.conformal import (
    check_scores,
    conformal_rank,
    conformal_threshold,
    rounded_up,
    smallest_alarm_rate,
)
from anomalib_mixedteacher.calibration.tail import tail_threshold
from anomalib_mixedteacher.errors import CalibrationError, ConfigurationError

logger = logging.getLogger(__name__)

SMALLEST_UNIT = 1e-6


@dataclass(frozen=True)
class Threshold:
    """A threshold, and the good images' scores that it was found from.

    Attributes:
        value: Raw score or value of the map above which there is an alarm.
        scores: Raw scores of the good images ``(n,)``, in ascending order.
    """

    value: float
    scores: NDArray[np.float32]

    @property
    def median(self) -> float:
        """The good images' median score, the lower one of two: 0.25 on the new scale."""
        return float(self.scores[(self.scores.size - 1) // 2])

    @property
    def unit(self) -> float:
        """Distance of the threshold from the median; where there is none, the threshold's own size."""
        distance = float(np.float32(self.value) - np.float32(self.median))
        return distance if distance > 0 else max(abs(self.value), SMALLEST_UNIT)

    def rescale(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give values on the scale on which the threshold is 0.5; see :func:`rescale`."""
        return rescale(values, np.float32(self.value), np.float32(self.unit))


def rescale(
    values: Any,
    threshold: Any,
    unit: Any,
    absolute: Callable[[Any], Any] = abs,
    number: Callable[[float], Any] = float,
) -> Any:
    """Rescale to 0.5 at a threshold and towards 0 and 1 on either side; a unit below the threshold becomes 0.25.

    It is strictly monotone, so that ranks, and with them AUROC and p-values, stay as they are (up to rounding).

    Args:
        values: Raw scores or maps: tensors, arrays, or a node of an OpenVINO graph.
        threshold: The threshold.
        unit: What counts as one step, above 0.
        absolute: Absolute value of such values, where Python's own does not take them.
        number: Makes a number of their kind, where Python's are not taken.

    Returns:
        Values above 0 and below 1, of the kind and shape of ``values``.
    """
    steps = (values - threshold) / unit
    half, one = number(0.5), number(1)
    return half + half * steps / (one + absolute(steps))


def find_threshold(
    scores: ArrayLike, alarm_rate: float, kind: str = "image", tail_fit: bool = False, strict: bool = False
) -> Threshold:
    """Find the threshold for a budget of false alarms.

    Args:
        scores: Raw scores of held-out good images.
        alarm_rate: Share of good images that may raise an alarm, above 0 and below 1.
        kind: What messages call the threshold.
        tail_fit: Estimate from the tail of the scores where these are too few for the budget.
        strict: Refuse where they are too few, instead of taking their maximum and warning.

    Returns:
        The conformal threshold where there are enough scores, else the estimate or the maximum.

    Raises:
        CalibrationError: If there are no scores, if one is not finite, or if they are too few and ``strict``.
    """
    values = check_scores(scores)
    value = _find(values, alarm_rate, kind, tail_fit, strict)
    return Threshold(float(np.float32(value)), values.astype(np.float32))  # as precise as what a model keeps


def _find(scores: NDArray[np.float64], alarm_rate: float, kind: str, tail_fit: bool, strict: bool) -> float:
    reachable = conformal_rank(scores.size, alarm_rate) <= scores.size
    if reachable or (strict and not tail_fit):
        return conformal_threshold(scores, alarm_rate)
    if tail_fit:
        try:
            estimate = tail_threshold(scores, alarm_rate)
        except CalibrationError as error:
            if strict:
                raise
            logger.warning("%s", error)
        else:
            logger.warning("The %s threshold is an estimate from the tail of %d scores.", kind, scores.size)
            return estimate
    logger.warning(
        "%d good images are too few for an alarm rate of %g: the %s threshold is their maximum, good for %s.",
        scores.size,
        alarm_rate,
        kind,
        rounded_up(smallest_alarm_rate(scores.size), 3),
    )
    return float(scores[-1])


def region_score(anomaly_map: NDArray[np.float32], min_area: int) -> float:
    """Give the highest threshold at which a map still has a region of a minimum area.

    It is the maximum of the map's area opening (Vincent 1992): what remains when every bright structure smaller than
    the area is cut down. Pixels that touch at a corner are connected.

    Args:
        anomaly_map: Anomaly map ``(H, W)``.
        min_area: Area in pixels, 1 or more.

    Returns:
        The threshold: above it the map has no such region, at it it has.

    Raises:
        ConfigurationError: If the map is smaller than the area.
    """
    height, width = anomaly_map.shape
    if min_area > height * width:
        msg = (
            f"min_area is {min_area} pixels, and the anomaly map has {height} x {width}: give a smaller one, in pixels "
            "of the map."
        )
        raise ConfigurationError(msg)
    from skimage.morphology import area_opening  # slow to import, and needed for calibration only

    return float(area_opening(anomaly_map, area_threshold=min_area, connectivity=2).max())


def check_min_area(min_area: int) -> int:
    """Refuse an area below one pixel.

    Raises:
        ConfigurationError: If it is.
    """
    if min_area < 1:
        msg = f"min_area must be 1 pixel or more, not {min_area}."
        raise ConfigurationError(msg)
    return min_area
