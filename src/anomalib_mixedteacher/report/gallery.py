"""Images beside every model's heat map of them: which ones, and how they are drawn."""

import base64
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries

from anomalib_mixedteacher.benchmark.result import GOOD, Calibration, KeptPredictions
from anomalib_mixedteacher.errors import DataError
from anomalib_mixedteacher.report.run import Run
from mixedteacher_edge.decoding import MIN_SIDE, to_rgb

MISS, ALARM, RANDOM = "miss", "alarm", "random"
PARTS = {MISS: "Lowest-scored defects", ALARM: "Highest-scored good images", RANDOM: "Random sample"}
MASK_COLOUR, CONTOUR_COLOUR = (255, 0, 255), (255, 255, 255)  # neither is in the heat map's colours

_IMAGES = 12  # of each part and data set, if there is room for them
_PICTURES = 1500  # in a report that was not asked for a number: at about 4 kB each, a few megabytes
_SIDE = 160
_OPACITY = 0.4


@dataclass(frozen=True)
class Kept:
    """Predictions of a data set: of one seed, since another seed has another split and other test images.

    Attributes:
        seed: The seed that most models finished, the smallest of several; ``None`` if none did.
        predictions: By the models that have any.
        calibrations: The thresholds of the same models.
        missing: A sentence for each other model.
    """

    seed: int | None
    predictions: dict[str, KeptPredictions]
    calibrations: dict[str, Calibration]
    missing: list[str]

    @classmethod
    def load(cls, run: Run, data: str) -> "Kept":
        """Read a data set's predictions."""
        seeds = [result.cell.seed for model in run.models for result in run.of(model, data)]
        seed = max(sorted(set(seeds)), key=seeds.count, default=None)
        found = {m: result for m in run.models for result in run.of(m, data) if result.cell.seed == seed}
        return cls(
            seed,
            {model: run.folder.predictions(result.cell) for model, result in found.items()},
            {model: result.calibration for model, result in found.items()},
            [f"{model} has no result with this seed." for model in run.models if seeds and model not in found],
        )


@dataclass(frozen=True)
class Panel:
    """A picture of a row as a data URI, or a text in its place; and what a model says of the image."""

    title: str
    uri: str = ""
    text: str = ""
    score: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """One image: kind, name, the parts of the gallery that show it, its pictures, and their width and height."""

    kind: str
    name: str
    parts: list[str]
    panels: list[Panel]
    size: tuple[int, int]


@dataclass(frozen=True)
class Scale:
    """How a model's anomaly map becomes colours, the same for all images of a data set.

    Attributes:
        low: Value of the first colour.
        threshold: The calibrated pixel threshold, which has the middle colour; ``None`` if there is none.
        high: Value of the last colour.
    """

    low: float
    threshold: float | None
    high: float

    @classmethod
    def of(cls, maps: NDArray[np.float32], threshold: float | None) -> "Scale":
        """Reach from the first hundredth of the values of maps ``(N, h, w)`` to their last thousandth."""
        finite = maps[np.isfinite(maps)]
        low, high = (float(v) for v in np.percentile(finite, [1, 99.9])) if finite.size else (0.0, 1.0)
        if threshold is not None:
            low = min(low, threshold - 1e-6 * (abs(threshold) or 1))
            high = max(high, 2 * threshold - low)  # no map reaches the threshold: leave the upper colours unused
        return cls(low, threshold, high if high > low else low + 1)

    def heat(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map values to ``[0, 1]``, the threshold to 0.5; what is not a number counts as the lowest."""
        known = [self.low, self.high] if self.threshold is None else [self.low, self.threshold, self.high]
        return np.nan_to_num(np.interp(values, known, np.linspace(0, 1, len(known)))).astype(np.float32)


def images_by_default(models: int, data_sets: int) -> int:
    """Choose how many images a part shows, so that the whole report stays a few megabytes."""
    return max(1, min(_IMAGES, _PICTURES // (3 * max(1, data_sets) * (models + 2))))


def select(predictions: Mapping[str, KeptPredictions], number: int) -> dict[str, list[str]]:
    """Choose images of a data set, ``number`` of each part at most.

    The models take turns, each naming the worst image that no other has named yet, so that every model's failures are
    seen and scores of different models need not be compared.

    Returns:
        Keys of :data:`PARTS` by the image's path, in their order.
    """
    chosen: dict[str, list[str]] = {}
    for part, sign in ((MISS, 1), (ALARM, -1)):
        queues = []
        for kept in predictions.values():
            scored = sorted(zip((sign * kept.scores).tolist(), kept.paths, kept.kinds, strict=True))
            queues.append([path for _, path, kind in scored if (kind == GOOD) == (part == ALARM)])
        named: dict[str, None] = {}
        while any(queues):
            for queue in queues:
                while queue and queue[0] in named:
                    queue.pop(0)
                if queue:
                    named[queue.pop(0)] = None
        for path in list(named)[:number]:
            chosen.setdefault(path, []).append(part)
    paths = sorted({path for kept in predictions.values() for path in kept.paths})
    for path in sorted(random.Random(0).sample(paths, min(number, len(paths)))):
        chosen.setdefault(path, []).append(RANDOM)
    return chosen


def rows(kept: Kept, number: int) -> Iterator[Row]:
    """Draw a data set's part of the gallery."""
    scales = {model: Scale.of(of.maps, kept.calibrations[model].pixel) for model, of in kept.predictions.items()}
    places = {model: {path: i for i, path in enumerate(of.paths)} for model, of in kept.predictions.items()}
    for path, parts in select(kept.predictions, number).items():
        first = next(model for model in places if path in places[model])
        index = places[first][path]
        kind, mask = str(kept.predictions[first].kinds[index]), kept.predictions[first].masks[index]
        name = "/".join(Path(path).parts[-2:])
        try:
            background = thumbnail(Path(path))
            panels = [Panel("image", encode(background), f"The image {name}")]
        except DataError:
            background = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
            panels = [Panel("image", text="The image file is gone or cannot be read.")]
        height, width = background.shape[:2]
        if mask.any():
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
            panels.append(Panel("mask", encode(255 * mask.astype(np.uint8)), f"The mask of {name}"))
        else:
            mask = np.zeros((height, width), bool)
            panels.append(Panel("mask", text="Good: nothing to mark." if kind == GOOD else "No mask."))
        for model, of in kept.predictions.items():
            if path not in places[model]:
                panels.append(Panel(model, text="This model has no prediction of this image."))
                continue
            index = places[model][path]
            said = _judge(float(of.scores[index]), kept.calibrations[model].image, kind)
            if of.maps.size:
                drawn = overlay(background, of.maps[index], mask, scales[model])
                panels.append(Panel(model, encode(drawn), f"Heat map of {model} on {name}", *said))
            else:
                panels.append(Panel(model, "", "No anomaly map was kept.", *said))
        yield Row(kind, name, parts, panels, (width, height))


def _judge(score: float, threshold: float | None, kind: str) -> tuple[str, str]:
    if threshold is None:
        return f"score {score:.3g}", ""
    alarm = score >= threshold
    verdict = ("✗ false alarm" if alarm else "✓ passed") if kind == GOOD else ("✓ found" if alarm else "✗ missed")
    return f"score {score:.3g} {'≥' if alarm else '<'} {threshold:.3g}", verdict


def thumbnail(path: Path) -> NDArray[np.uint8]:
    """Read an image and make it small: ``(H, W, 3)``, the longer side 160 pixels, none below 32, widened if need be.

    Raises:
        DataError: If the image is gone or cannot be read.
    """
    rgb = to_rgb(path)
    values = rgb if rgb.dtype == np.uint8 else np.rint(255 * rgb).astype(np.uint8)
    factor = _SIDE / max(values.shape[:2])
    height, width = (max(MIN_SIDE, round(factor * side)) for side in values.shape[:2])
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.LANCZOS))


def overlay(
    background: NDArray[np.uint8], values: NDArray[np.float32], mask: NDArray[np.bool_], scale: Scale
) -> NDArray[np.uint8]:
    """Lay a heat map over a thumbnail, with the contours of the thresholded map (white) and of the mask (magenta).

    The thumbnail is of shape ``(H, W, 3)``, the mask ``(H, W)``, the raw anomaly map ``(h, w)``.
    """
    height, width = background.shape[:2]
    heat = np.asarray(Image.fromarray(scale.heat(values)).resize((width, height), Image.Resampling.BILINEAR))
    colours = 255 * colormaps["turbo"](heat)[..., :3]
    drawn = np.rint((1 - _OPACITY) * background + _OPACITY * colours).astype(np.uint8)
    if scale.threshold is not None:
        drawn[find_boundaries(heat >= 0.5, mode="inner")] = CONTOUR_COLOUR
    drawn[find_boundaries(mask, mode="inner")] = MASK_COLOUR
    return drawn


def encode(values: NDArray[np.uint8]) -> str:
    """Encode a picture as a data URI of WebP."""
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "WEBP", quality=72, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
