"""The figures of the verdict table: what they are called, how they are written, and which is better."""

import math
from dataclasses import dataclass

from anomalib_mixedteacher.report.data import FOUND


@dataclass(frozen=True)
class Column:
    """A column of the verdict table.

    Attributes:
        name: Key of the figure, as in the benchmark's own tables.
        group: Heading over neighbouring columns.
        label: Heading.
        unit: Unit, or nothing.
        meaning: A sentence for readers who do not know the figure.
        higher_is_better: Which value a reader wants to see first.
        has_best: Whether one value is better than all others; no false alarm is no merit of a model that finds nothing.
        percent: Write shares as percentages.
    """

    name: str
    group: str
    label: str
    unit: str
    meaning: str
    higher_is_better: bool = True
    has_best: bool = True
    percent: bool = False

    def text(self, value: float, like: float | None = None) -> str:
        """Write a value without its unit, with as many decimals as another one has where that is given."""
        if self.percent:
            return f"{100 * value:.1f}"
        if self.unit:
            return f"{value:,.{decimals(value if like is None else like)}f}"
        return f"{value:.3f}"


def significant(value: float) -> str:
    """Write a quantity to three significant digits, and whole numbers from 100 on."""
    return f"{value:,.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Count the decimals of a number with three significant digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 0


COLUMNS = (
    Column("image_AUROC", "Images", "AUROC", "", "How well scores rank defective above good images; 0.5 is chance."),
    Column("image_F1", "Images", "F1", "", "Best F1 over all thresholds, so it knows the defects: an upper bound."),
    Column("image_AP", "Images", "AP", "", "Average precision of the ranking of images."),
    Column("pixel_AUROC", "Pixels", "AUROC", "", "How well maps rank defective above good pixels."),
    Column("PRO", "Pixels", "PRO", "", "Overlap with each defective region; small ones count as much as large ones."),
    Column("pixel_F1", "Pixels", "F1", "", "Best F1 of the pixels over all thresholds."),
    Column(
        "false_alarm_rate",
        "At the calibrated threshold",
        "False alarms",
        "%",
        "Share of good test images above the threshold that was calibrated on good images alone.",
        higher_is_better=False,
        has_best=False,
        percent=True,
    ),
    Column(
        FOUND,
        "At the calibrated threshold",
        "Found",
        "%",
        "Share of defective test images above the same threshold.",
        percent=True,
    ),
    Column("train_seconds", "Training", "Time", "s", "Wall time of the training.", higher_is_better=False),
    Column("peak_memory_mb", "Training", "Memory", "MB", "Peak memory of the process.", higher_is_better=False),
    Column("latency_ms", "Export", "Latency", "ms", "Time of one image, OpenVINO.", higher_is_better=False),
    Column("images_per_second", "Export", "Rate", "images/s", "Throughput of many images, OpenVINO."),
    Column("file_mb", "Export", "Size", "MB", "Size of the OpenVINO file.", higher_is_better=False),
)

BY_NAME = {column.name: column for column in COLUMNS}
