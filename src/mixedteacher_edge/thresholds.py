"""The thresholds of a model, and the scale on which they are 0.5."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixedteacher_edge.conformal import (
    check_alarm_rate,
    check_scores,
    conformal_rank,
    conformal_threshold,
    next_above,
    p_value,
    realised_alarm_rate,
    rounded_up,
    smallest_alarm_rate,
)
from mixedteacher_edge.errors import ConfigurationError
from mixedteacher_edge.tiling import STRIDE, starts

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["image", "pixel"]
Unit: TypeAlias = Literal["image", "tile"] | int
"""What a budget counts: images, tiles of the model's size, or so many lines of an image."""

SMALLEST_UNIT = 1e-6
NO_TILES = "per={} counts parts of images that are cut into tiles: train with tile_size, or leave it out."
_MARGIN = 2.0**-24  # float16 has it as well, in which files of half the size keep constants
_BAR = 40


@dataclass(frozen=True)
class Thresholds:
    """Raw scores from which on there is an alarm, and how they were found.

    Attributes:
        image: Raw score from which on an image is an alarm.
        pixel: Raw value of the anomaly map from which on a pixel is marked; ``None`` takes ``image``.
        alarm_rate: Budget for false alarms, above 0 and below 1; ``None`` unless found from good images alone.
        min_area: Pixels of the anomaly map from which a region counts; ``None`` unless found from good images alone.
        image_scores: Raw scores of the good images, or of their parts, in ascending order; empty if there were none.
        pixel_scores: Their :func:`region_score`, likewise.
        per: What the budget counts; see :data:`Unit`.
    """

    image: float
    pixel: float | None = None
    alarm_rate: float | None = None
    min_area: int | None = None
    image_scores: tuple[float, ...] = ()
    pixel_scores: tuple[float, ...] = ()
    per: Unit = "image"

    @classmethod
    def from_good(
        cls,
        image: ArrayLike,
        pixel: ArrayLike | None,
        alarm_rate: float,
        min_area: int,
        strict: bool = False,
        per: Unit = "image",
    ) -> "Thresholds":
        """Find the thresholds for a budget of false alarms, by :func:`~.conformal.conformal_threshold`.

        Args:
            image: Raw scores of held-out good images, or of their :func:`parts`.
            pixel: Their :func:`region_score`; ``None`` without anomaly maps.
            alarm_rate: Share of good images that may raise an alarm, above 0 and below 1.
            min_area: Pixels of the anomaly map from which a region counts.
            strict: Refuse where the images are too few for the budget, instead of taking the smallest that they can
                promise and warning.
            per: What the budget counts.

        Raises:
            CalibrationError: If there are no scores, if one is not finite, or if they are too few and ``strict``.
        """
        images, regions = (np.empty(0) if scores is None else check_scores(scores) for scores in (image, pixel))
        n = images.size
        enough = conformal_rank(n, alarm_rate) <= n
        if not enough and not strict:
            logger.warning(
                "%d good %s are too few for an alarm rate of %g: the thresholds lie at their maximum, good for %s.",
                n,
                _plural(per),
                alarm_rate,
                rounded_up(smallest_alarm_rate(n), 3),
            )

        def find(scores: NDArray[np.float64]) -> float:
            return conformal_threshold(scores, alarm_rate) if enough or strict else next_above(float(scores[-1]))

        kept = [tuple(scores.astype(np.float32).tolist()) for scores in (images, regions)]
        pixel_threshold = find(regions) if regions.size else None
        return cls(find(images), pixel_threshold, alarm_rate, min_area, kept[0], kept[1], per)

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Thresholds":
        """Make one of what :func:`dataclasses.asdict` gave, and JSON may have changed; unknown entries are left out."""
        known: dict[str, Any] = {entry.name: content[entry.name] for entry in fields(cls) if entry.name in content}
        return cls(**known | {name: tuple(value) for name, value in known.items() if isinstance(value, list)})

    def value(self, kind: Kind) -> float:
        """Give a threshold as a raw value."""
        return self.image if kind == "image" or self.pixel is None else self.pixel

    def unit(self, kind: Kind) -> float:
        """Give the step of the scale: the distance from the good images' median, the lower of two, to the threshold.

        Without scores, or where the median lies at the threshold, it is the threshold's own size.
        """
        threshold = self.value(kind)
        scores = self.image_scores if kind == "image" or self.pixel is None else self.pixel_scores
        median = scores[(len(scores) - 1) // 2] if scores else threshold
        if max((score for score in scores if score < threshold), default=median) > median:
            return float(np.float32(threshold) - np.float32(median))
        return max(abs(threshold), SMALLEST_UNIT)

    def rescale(self, values: ArrayLike, kind: Kind = "image") -> NDArray[np.float32]:
        """Give raw values on the scale on which the threshold is 0.5; see :func:`rescale`."""
        raw = np.asarray(values, np.float32)
        return np.asarray(rescale(raw, np.float32(self.value(kind)), np.float32(self.unit(kind))), np.float32)

    @cached_property
    def good_scores(self) -> NDArray[np.float32]:
        """The good images' scores on that scale, in ascending order ``(n,)``."""
        scores = np.asarray(self.image_scores, np.float32)
        # the graph rounds otherwise: the score just below the threshold must stay the last one below 0.5
        last = np.nextafter(np.float32(self.image), np.float32(-np.inf))
        return np.where(scores == last, np.float32(0.5 - _MARGIN), self.rescale(scores))

    def p_value(self, score: float) -> float | None:
        """Give the conformal p-value of a score on that scale; ``None`` without scores of good images."""
        return float(p_value(np.float32(score), self.good_scores)) if self.image_scores else None

    def text(self) -> str:
        """Describe thresholds that came from good images for a person, with a histogram of the scores."""
        n = len(self.image_scores)
        alarm_rate = check_alarm_rate(self.alarm_rate or 0)
        mean, low, high = (1000 * rate for rate in realised_alarm_rate(n, min(n, conformal_rank(n, alarm_rate))))
        counted = _plural(self.per)
        lines = [
            f"{n} good {counted}, budget {alarm_rate:g}: image threshold {self.image:.6g}, "
            f"pixel threshold {self.value('pixel'):.6g}",
            f"expected false alarms in 1000 good {counted}: {mean:.1f} (95 %: {low:.1f} to {high:.1f})",
            f"smallest budget these {counted} can promise: {rounded_up(smallest_alarm_rate(n), 3)}",
        ]
        counts, edges = np.histogram(self.image_scores, bins=12)
        marked = min(int(np.searchsorted(edges, self.image)) - 1, len(counts) - 1)
        for index, (count, start) in enumerate(zip(counts, edges, strict=False)):
            mark = "  <- threshold" if index == marked else ""
            lines.append(f"{start:10.4g} {'#' * round(_BAR * count / counts.max()):{_BAR}} {count}{mark}")
        return "\n".join(lines)


def _plural(per: Unit) -> str:
    return f"{per}s" if isinstance(per, str) else f"stretches of {per} lines"


class Arithmetic(NamedTuple):
    """What :func:`rescale` needs of a kind of values: numpy's arrays, tensors, or nodes of an OpenVINO graph."""

    absolute: Callable[[Any], Any] = np.abs
    less: Callable[[Any, Any], Any] = np.less
    where: Callable[[Any, Any, Any], Any] = np.where
    number: Callable[[float], Any] = np.float32


_ARRAYS = Arithmetic()


def rescale(values: Any, threshold: Any, unit: Any, arithmetic: Arithmetic = _ARRAYS) -> Any:
    """Rescale to 0.5 at a threshold and towards 0 and 1 on either side; a unit below the threshold becomes 0.25.

    It is monotone, so that ranks, and with them AUROC and p-values, stay as they are, up to rounding. A value reaches
    the threshold if and only if it comes to be 0.5 or more, whatever the rounding.

    Args:
        values: Raw scores or maps.
        threshold: The threshold.
        unit: What counts as one step, above 0.
        arithmetic: That of ``values``.

    Returns:
        Values above 0 and below 1, of the kind and shape of ``values``.
    """
    absolute, less, where, number = arithmetic
    half, one = number(0.5), number(1)
    steps = (values - threshold) / unit
    scaled = half + half * steps / (one + absolute(steps))
    low = less(scaled, half)
    return where(less(values, threshold), where(low, scaled, half - number(_MARGIN)), where(low, half, scaled))


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
        ConfigurationError: If the map is smaller than the area, or scikit-image is missing.
    """
    height, width = anomaly_map.shape
    if min_area > height * width:
        msg = f"min_area is {min_area} pixels of the anomaly map, which has {height} x {width}: give a smaller one."
        raise ConfigurationError(msg)
    from skimage.morphology import area_opening  # slow to import, and needed for calibration only

    return float(area_opening(anomaly_map, area_threshold=min_area, connectivity=2).max())


def part_scores(
    score: float, anomaly_map: NDArray[np.float32], min_area: int, per: Unit, tile_size: int | None, scale: int = 1
) -> list[tuple[float, float]]:
    """Give score and :func:`region_score` of each part of an image that a budget counts.

    Args:
        score: Score of the image.
        anomaly_map: Its map ``(H, W)``.
        min_area: Area of a region in pixels of the image, at the size at which the model works.
        per: What the budget counts.
        tile_size: Side of the model's tiles in pixels of the image; ``None`` if it has none.
        scale: Pixels of the image along a side of one of the map.

    Returns:
        One pair for the image, or for each part of it, of which the last ones end with the image; one for the image
        too where it is smaller than a part.

    Raises:
        ConfigurationError: If the budget counts parts, and the model does not work in tiles.
    """
    area = -(-min_area // scale**2)
    if per == "image":
        return [(score, region_score(anomaly_map, area))]
    if tile_size is None:
        raise ConfigurationError(NO_TILES.format(per))
    height, width = anomaly_map.shape
    rows = (tile_size if per == "tile" else per) // scale
    columns = tile_size // scale if per == "tile" else width
    rows, columns = min(rows, height), min(columns, width)
    parts = [
        anomaly_map[top : top + rows, left : left + columns]
        for top in starts(height, rows, rows)
        for left in starts(width, columns, columns)
    ]
    return [(float(part.max()), region_score(part, area)) for part in parts]


def check_per(per: Unit | str) -> Unit:
    """Check what a budget is to count.

    Raises:
        ConfigurationError: If it is neither ``"image"`` nor ``"tile"`` nor a number of lines, a multiple of 4.
    """
    if per in {"image", "tile"}:
        return per
    if not str(per).isdecimal() or int(per) < 1 or int(per) % STRIDE:
        msg = f"per is {per}: give image, tile, or a number of lines that is a multiple of {STRIDE}."
        raise ConfigurationError(msg)
    return int(per)


def check_min_area(min_area: int) -> int:
    """Refuse an area below one pixel.

    Raises:
        ConfigurationError: If it is.
    """
    if min_area < 1:
        msg = f"min_area must be 1 pixel or more, not {min_area}."
        raise ConfigurationError(msg)
    return min_area
