"""Does the camera still see what the model was calibrated on?

The scores of images that passed as good are gathered in windows. A full window is compared with the calibration's
passing scores by the two-sample Kolmogorov-Smirnov test, which asks nothing of their distribution. If nothing has
changed, a share of ``false_report_rate`` of the windows is reported, on average over calibrations; windows do not
overlap, so that looking often does not add false reports.
"""

import json
import logging
import math
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mixedteacher_edge.detector import THRESHOLD, Prediction
from mixedteacher_edge.errors import CalibrationError, ConfigurationError
from mixedteacher_edge.record import ModelRecord

FORMAT = 1
MIN_SCORES = 8  # below it no window could ever be reported at a usual rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DriftReport:
    """What the comparison of a full window found.

    Attributes:
        drifted: Whether the window is reported.
        images: Number of passed images in the window.
        p_value: How likely a window differs at least as much if nothing has changed, in ``[0, 1]``.
        strength: Largest difference of the two distribution functions, in ``[0, 1]``.
        higher: Whether the window's scores lie mostly above the calibration's.
    """

    drifted: bool
    images: int
    p_value: float
    strength: float
    higher: bool

    def text(self) -> str:
        """Write the report as one sentence."""
        finding = "no longer look like" if self.drifted else "look like"
        return (
            f"The last {self.images} passed images {finding} the calibration images: scores mostly "
            f"{'higher' if self.higher else 'lower'}, strength {self.strength:.2f}, p = {self.p_value:.2g}."
        )


class DriftMonitor:
    """Watches the scores of images that the model passes for change. It may be used from several threads.

    Args:
        calibration: Scores of the calibration images, as the exported model gives them.
        state: File that keeps the window over restarts, one for each process; ``None`` keeps it in memory only. It is
            replaced as a whole, so a crash leaves the old or the new one.
        window: Number of passed images to compare at a time, 8 or more.
        false_report_rate: Share of windows that are reported although nothing has changed, above 0 and below 1.
        model: Names the model in the state, so that another model's window is not continued.

    Raises:
        CalibrationError: If there are fewer than 8 passing calibration scores.
        ConfigurationError: If another argument is out of range.
    """

    def __init__(
        self,
        calibration: ArrayLike,
        state: Path | None = None,
        window: int = 200,
        false_report_rate: float = 0.001,
        model: str = "",
    ) -> None:
        scores = np.asarray(calibration, dtype=np.float64).ravel()
        self._calibration = scores[scores < THRESHOLD]
        if self._calibration.size < MIN_SCORES:
            msg = (
                f"{self._calibration.size} passing calibration images are too few to see a change: calibrate on "
                f"{MIN_SCORES} good images or more."
            )
            raise CalibrationError(msg)
        if window < MIN_SCORES or not 0 < false_report_rate < 1:
            msg = (
                f"window={window} and false_report_rate={false_report_rate} do not fit: give a window of {MIN_SCORES} "
                "images or more, and a rate above 0 and below 1."
            )
            raise ConfigurationError(msg)
        self._state = state
        self._window = window
        self._rate = false_report_rate
        self._model = model
        self._adding = threading.Lock()
        self.scores: list[float] = self._restore()

    @classmethod
    def of(cls, record: ModelRecord | None, **arguments: Any) -> "DriftMonitor":
        """Make a monitor for an exported model; ``arguments`` are the class's, but for the scores and the model."""
        if record is None or record.thresholds is None or not record.thresholds.image_scores:
            msg = "The model was not calibrated on good images: run 'mixedteacher calibrate MODEL.xml --good FOLDER'."
            raise CalibrationError(msg)
        return cls(record.thresholds.good_scores, model="".join(sorted(record.files.values())), **arguments)

    def add(self, prediction: Prediction) -> DriftReport | None:
        """Take a prediction that the model's own threshold passes; give a report when the window is full."""
        if prediction.score >= THRESHOLD:
            return None
        with self._adding:
            self.scores.append(prediction.score)
            report = self._compare() if len(self.scores) >= self._window else None
            if report is not None:
                self.scores.clear()
            self._save()
        return report

    def _compare(self) -> DriftReport:
        strength, p_value = kolmogorov_smirnov(self._calibration, self.scores)
        higher = float(np.median(self.scores)) > float(np.median(self._calibration))
        return DriftReport(p_value <= self._rate, len(self.scores), p_value, strength, higher)

    def _restore(self) -> list[float]:
        if self._state is None or not self._state.exists():
            return []
        try:
            content = json.loads(self._state.read_text())
            if (content["format"], content["model"]) == (FORMAT, self._model):
                return [float(score) for score in content["scores"]][-self._window + 1 :]
            logger.warning("%s belongs to another model: a new window starts.", self._state)
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("%s cannot be read: a new window starts.", self._state)
        return []

    def _save(self) -> None:
        if self._state is None:
            return
        temporary = self._state.with_name(f".{self._state.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps({"format": FORMAT, "model": self._model, "scores": self.scores}))
            temporary.replace(self._state)
        except OSError as error:  # a full disk must not stop the inspection
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            logger.warning("The drift state %s cannot be written (%s): give another file.", self._state, error.strerror)
            self._state = None


def kolmogorov_smirnov(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Compare two samples by the two-sample Kolmogorov-Smirnov test.

    Returns:
        Largest difference of the two distribution functions, in ``[0, 1]``, and its p-value by the asymptotic formula
        with Stephens' (1970) correction for small samples.
    """
    a, b = (np.sort(np.asarray(sample, dtype=np.float64).ravel()) for sample in (first, second))
    values = np.concatenate([a, b])
    difference = np.searchsorted(a, values, "right") / a.size - np.searchsorted(b, values, "right") / b.size
    statistic = float(np.abs(difference).max())
    root = math.sqrt(a.size * b.size / (a.size + b.size))
    scaled = (root + 0.12 + 0.11 / root) * statistic
    if scaled < 0.2:  # where the series needs ever more terms, and is 1 to ten digits
        return statistic, 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 100))
    return statistic, min(1.0, max(0.0, sum(terms)))
