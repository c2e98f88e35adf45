"""What a calibration found, for a person and for a file."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anomalib_mixedteacher.calibration.conformal import conformal_rank, rounded_up, smallest_alarm_rate
from anomalib_mixedteacher.calibration.tail import realised_alarm_rate
from anomalib_mixedteacher.calibration.thresholds import Threshold

_BAR = 40


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration found.

    Attributes:
        model: The calibrated checkpoint or exported model.
        alarm_rate: Budget for false alarms.
        images: Number of good images.
        image_threshold: Raw score above which an image is an alarm.
        pixel_threshold: Raw value of the anomaly map above which a pixel is marked.
        estimated: Whether the image threshold is a tail fit rather than a conformal one.
        expected_alarms: Expected false alarms in a thousand good images.
        interval: Central 95 % interval of that number, over calibration sets of this size; of no use for an estimate.
        smallest_alarm_rate: Smallest budget that this number of images can promise.
        suspects: Images that score far above the others.
        scores: Raw scores, in ascending order.
    """

    model: str
    alarm_rate: float
    images: int
    image_threshold: float
    pixel_threshold: float
    estimated: bool
    expected_alarms: float
    interval: tuple[float, float]
    smallest_alarm_rate: float
    suspects: list[str]
    scores: list[float]

    def text(self) -> str:
        """Write the report for a person, with a histogram of the scores."""
        kind = "estimated from the scores' tail" if self.estimated else "conformal"
        lines = [
            f"{self.images} good images, budget {self.alarm_rate:g}: image threshold {self.image_threshold:.6g} "
            f"({kind}), pixel threshold {self.pixel_threshold:.6g}",
        ]
        if not self.estimated:
            low, high = self.interval
            lines.append(
                f"expected false alarms in 1000 good images: {self.expected_alarms:.1f} (95 %: {low:.1f} to {high:.1f})"
            )
        lines.append(f"smallest budget these images can promise: {rounded_up(self.smallest_alarm_rate, 3)}")
        counts, edges = np.histogram(self.scores, bins=12)
        marked = min(int(np.searchsorted(edges, self.image_threshold, side="right")) - 1, len(counts) - 1)
        for index, (count, low) in enumerate(zip(counts, edges, strict=False)):
            mark = "  <- threshold" if index == marked else ""
            lines.append(f"{low:10.4g} {'#' * round(_BAR * count / counts.max()):{_BAR}} {count}{mark}")
        lines += [f"look whether it has a defect: {path}" for path in self.suspects]
        return "\n".join(lines)

    @classmethod
    def of(
        cls, thresholds: Mapping[str, Threshold], alarm_rate: float, model: str, suspects: list[str]
    ) -> "CalibrationReport":
        """Describe a calibration.

        Args:
            thresholds: What was found, by ``image`` and ``pixel``.
            alarm_rate: Budget for false alarms.
            model: Path of what was calibrated.
            suspects: Images among the good ones that do not look good.
        """
        image = thresholds["image"]
        n = image.scores.size
        rank = conformal_rank(n, alarm_rate)
        mean, low, high = realised_alarm_rate(n, min(rank, n))
        return cls(
            model=model,
            alarm_rate=alarm_rate,
            images=n,
            image_threshold=image.value,
            pixel_threshold=thresholds["pixel"].value,
            estimated=rank > n,
            expected_alarms=1000 * mean,
            interval=(1000 * low, 1000 * high),
            smallest_alarm_rate=smallest_alarm_rate(n),
            suspects=suspects,
            scores=image.scores.tolist(),
        )
