"""Images beside every model's heat map of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomalib_mixedteacher.benchmark.result import GOOD, Calibration
from anomalib_mixedteacher.benchmark.run_folder import KeptPredictions
from anomalib_mixedteacher.report.columns import significant
from anomalib_mixedteacher.report.selection import select
from anomalib_mixedteacher.report.thumbnails import (
    Picture,
    Scale,
    blank,
    encode,
    encode_mask,
    overlay,
    thumbnail_or_reason,
)

IMAGES = 12
"""Images of each part and data set, if there is room for them."""

PICTURES = 1500
"""Pictures in a report that was not asked for a number of images: at about 4 kB each, a few megabytes."""

_FOUND, _MISSED, _ALARM, _PASSED = "found", "missed", "false alarm", "passed"
_WRONG = (_MISSED, _ALARM)


@dataclass(frozen=True)
class Panel:
    """One picture of a row.

    Attributes:
        title: What it shows: ``"image"``, ``"mask"`` or a model's name.
        alt: The picture in words.
        picture: The picture, or ``None``.
        instead: What stands in the picture's place.
        score: A model's score against its threshold.
        verdict: What a model says at its threshold; empty without one.
    """

    title: str
    alt: str = ""
    picture: Picture | None = None
    instead: str = ""
    score: str = ""
    verdict: str = ""

    @property
    def wrong(self) -> bool:
        """Whether the verdict is a mistake."""
        return self.verdict in _WRONG


@dataclass(frozen=True)
class Row:
    """One image: its data set, kind, name, the parts of the gallery that show it, and its pictures."""

    data: str
    kind: str
    name: str
    parts: list[str]
    panels: list[Panel]

    @property
    def summary(self) -> str:
        """Say how many models are wrong."""
        judged = [panel for panel in self.panels if panel.verdict]
        if not judged:
            return ""
        wrong = sum(panel.wrong for panel in judged)
        mistake = "raises a false alarm" if self.kind == GOOD else "misses it"
        if not wrong:
            return f"no model {mistake}"
        many = mistake if wrong == 1 else mistake.replace("raises", "raise").replace("misses", "miss")
        return f"{wrong} of {len(judged)} {'model' if len(judged) == 1 else 'models'} {many}"


def images_by_default(models: int, data_sets: int) -> int:
    """Choose how many images a part shows, so that the whole report stays a few megabytes."""
    return max(1, min(IMAGES, PICTURES // (3 * max(1, data_sets) * (models + 2))))


def rows(
    data: str,
    models: Sequence[str],
    predictions: Mapping[str, KeptPredictions],
    calibrations: Mapping[str, Calibration],
    number: int,
) -> Iterator[Row]:
    """Draw a data set's part of the gallery.

    Args:
        data: Name of the data set.
        models: Names of models, in the order of their pictures; those without predictions have none.
        predictions: By the models that have any, all of one seed.
        calibrations: The thresholds of the same models.
        number: Images of each part.
    """
    scales = {model: Scale.of(kept.maps, calibrations[model].pixel) for model, kept in predictions.items()}
    places = {model: {path: i for i, path in enumerate(kept.paths)} for model, kept in predictions.items()}
    for path, parts in select(predictions, number).items():
        seen = {model: place[path] for model, place in places.items() if path in place}
        first = next(iter(seen))
        kept, index = predictions[first], seen[first]
        kind, mask, name = str(kept.kinds[index]), kept.masks[index], "/".join(Path(path).parts[-2:])
        thumbnail = thumbnail_or_reason(Path(path))
        background = blank(mask.shape) if isinstance(thumbnail, str) else thumbnail
        panels = [_image(name, thumbnail), _mask(name, kind, mask, background.shape)]
        for model in (model for model in models if model in predictions):
            if model not in seen:
                panels.append(Panel(model, instead="This model has no prediction of this image."))
                continue
            kept, index = predictions[model], seen[model]
            score, verdict = _judge(float(kept.scores[index]), calibrations[model].image, kind)
            if not kept.maps.size:
                panels.append(Panel(model, instead="This model gives no anomaly maps.", score=score, verdict=verdict))
                continue
            drawn = encode(overlay(background, kept.maps[index], mask, scales[model]))
            alt = f"Heat map of {model} on {name}: {', '.join(filter(None, (score, verdict)))}"
            panels.append(Panel(model, alt, drawn, score=score, verdict=verdict))
        yield Row(data, kind, name, parts, panels)


def _image(name: str, thumbnail: NDArray[np.uint8] | str) -> Panel:
    if isinstance(thumbnail, str):
        return Panel("image", instead=thumbnail)
    return Panel("image", f"The image {name}", encode(thumbnail))


def _mask(name: str, kind: str, mask: NDArray[np.bool_], shape: tuple[int, ...]) -> Panel:
    if mask.any():
        return Panel("mask", f"Mask of {name}, {100 * mask.mean():.1f} % of the image", encode_mask(mask, shape))
    return Panel("mask", instead="Good: nothing to mark." if kind == GOOD else "No mask.")


def _judge(score: float, threshold: float | None, kind: str) -> tuple[str, str]:
    if threshold is None:
        return f"score {significant(score)}", ""
    alarm = score > threshold
    verdict = (_ALARM if alarm else _PASSED) if kind == GOOD else (_FOUND if alarm else _MISSED)
    return f"score {significant(score)} {'>' if alarm else '≤'} {significant(threshold)}", verdict
