"""Figures of a trained model from its raw predictions, and for each that cannot be had, a sentence that says why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.metrics.aupro import _AUPRO as AUPRO
from anomalib.metrics.f1_score import _F1Max as F1Max  # without the base that reads anomalib's batches
from anomalib.models import AnomalibModule
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_roc
from torchmetrics.utilities.compute import auc

from anomalib_mixedteacher.benchmark.result import GOOD, Calibration
from anomalib_mixedteacher.benchmark.run_folder import KeptPredictions
from anomalib_mixedteacher.benchmark.scores import PRO_LIMIT, Predictions
from anomalib_mixedteacher.components.raw_scores import to_unit_range
from anomalib_mixedteacher.post_processing.post_processor import NormalCalibratedPostProcessor
from mixedteacher_edge.conformal import smallest_alarm_rate

IMAGE_METRICS = ("image_AUROC", "image_F1", "image_AP")
PIXEL_METRICS = ("pixel_AUROC", "PRO", "pixel_F1")
METRICS = (*IMAGE_METRICS, *PIXEL_METRICS, "false_alarm_rate")

_FEW = 10  # defects below which one image moves the figures by a tenth and more
_CURVE_POINTS = 200
_KEPT_SIDE = 128
Points = list[tuple[float, float]]


def compute_metrics(
    predictions: Predictions, calibration: Calibration
) -> tuple[dict[str, float], dict[str, str], dict[str, Points]]:
    """Compute what can be computed.

    Args:
        predictions: Raw predictions of a test set.
        calibration: Thresholds in raw scores.

    Returns:
        Metrics; for each of :data:`METRICS` that is missing, why; and the curves. See
        :class:`~.result.Result`.
    """
    p = predictions
    metrics: dict[str, float] = {}
    curves: dict[str, Points] = {}
    missing = dict(_reasons(p, calibration))
    if "image_AUROC" not in missing:
        scores = to_unit_range(p.scores)
        metrics["image_AUROC"] = binary_auroc(scores, p.labels).item()
        metrics["image_AP"] = binary_average_precision(scores, p.labels).item()
        metrics["image_F1"] = _f1_max(p.scores, p.labels)
        curves["roc"] = _points(*binary_roc(scores, p.labels)[:2])
    if "pixel_AUROC" not in missing:
        maps, masks = p.maps.flatten(), p.masks.flatten()
        metrics["pixel_AUROC"] = binary_auroc(to_unit_range(maps), masks).item()
        metrics["pixel_F1"] = _f1_max(maps, masks)
        pro = AUPRO(fpr_limit=PRO_LIMIT)
        pro.update(p.maps, p.masks)
        rate, overlap = pro._compute()
        metrics["PRO"] = (auc(rate, overlap, reorder=True) / rate[-1]).item()
        curves["pro"] = _points(rate, overlap)
    if "false_alarm_rate" not in missing and calibration.image is not None:
        metrics["false_alarm_rate"] = (p.scores[p.labels == 0] >= calibration.image).float().mean().item()
    return metrics, missing, curves


def _reasons(p: Predictions, calibration: Calibration) -> Iterator[tuple[str, str]]:
    good, bad = int((p.labels == 0).sum()), int((p.labels == 1).sum())
    if not good or not bad:
        what = "good" if not good else "defective"
        yield from ((name, f"The test set has no {what} images.") for name in IMAGE_METRICS)
    if not bad:
        yield from ((name, "The test set has no defective images.") for name in PIXEL_METRICS)
    elif not p.masks.any():
        yield from ((name, "The test set has no masks.") for name in PIXEL_METRICS)
    elif not p.maps.numel():
        yield from ((name, "The model gives no anomaly maps.") for name in PIXEL_METRICS)
    if not good:
        yield "false_alarm_rate", "The test set has no good images."
    elif calibration.image is None:
        yield "false_alarm_rate", "There were no good validation images to set a threshold on."


def notes(predictions: Predictions, calibration: Calibration, alarm_rate: float) -> list[str]:
    """Say what a reader must know about the test set before trusting the figures.

    Args:
        predictions: Raw predictions of a test set.
        calibration: Thresholds in raw scores.
        alarm_rate: The budget that was asked for.
    """
    found = []
    bad = int((predictions.labels == 1).sum())
    if 0 < bad < _FEW:
        found.append(f"Only {bad} defective image{'s' * (bad > 1)} in the test set: one more or less found decides.")
    bare = int((~predictions.masks.flatten(1).any(dim=1) & (predictions.labels == 1)).sum())
    if bare and predictions.masks.any():
        found.append(f"{bare} of {bad} defective images have no mask: their pixels count as good.")
    if calibration.image is not None and calibration.alarm_rate > alarm_rate:
        found.append(
            f"{calibration.images} good validation images allow a budget of {calibration.alarm_rate:.3f}, not "
            f"{alarm_rate:g}: the threshold is their highest score."
        )
    return found


def count_alarms(predictions: Predictions, calibration: Calibration) -> dict[str, tuple[int, int]]:
    """Count the images above the calibrated threshold, and all images, by kind; empty without a threshold."""
    if calibration.image is None:
        return {}
    above = (predictions.scores >= calibration.image).tolist()
    kinds = sorted(set(predictions.kinds), key=lambda kind: (kind != GOOD, kind))
    pairs = list(zip(predictions.kinds, above, strict=True))
    return {kind: (sum(alarm for of, alarm in pairs if of == kind), predictions.kinds.count(kind)) for kind in kinds}


def read_calibration(model: AnomalibModule, alarm_rate: float) -> Calibration:
    """Take the thresholds that training found.

    Args:
        model: A model trained with a :class:`NormalCalibratedPostProcessor`.
        alarm_rate: The budget that was asked for.
    """
    post_processor: Any = model.post_processor
    assert isinstance(post_processor, NormalCalibratedPostProcessor)
    images = post_processor.image_scores.numel()
    reachable = max(alarm_rate, smallest_alarm_rate(images)) if images else alarm_rate
    image, pixel = post_processor._image_threshold, post_processor._pixel_threshold
    return Calibration(_number(image), _number(pixel), images, reachable)


def keep(predictions: Predictions, paths: list[str]) -> KeptPredictions:
    """Make predictions small enough to keep: maps and masks of at most 128 pixels a side.

    Args:
        predictions: Raw predictions.
        paths: Files of the images.
    """
    height, width = predictions.masks.shape[-2:]
    size = min(height, _KEPT_SIDE), min(width, _KEPT_SIDE)
    maps = predictions.maps.float()
    if maps.numel():
        maps = adaptive_avg_pool2d(maps[:, None], size)[:, 0]
    masks = adaptive_max_pool2d(predictions.masks[:, None].float(), size)[:, 0] > 0
    absolute = [str(Path(path).resolve()) for path in paths]
    return KeptPredictions(absolute, predictions.kinds, predictions.scores.float().numpy(), maps.numpy(), masks.numpy())


def _number(value: torch.Tensor) -> float | None:
    return None if value.isnan() else value.item()


def _f1_max(scores: torch.Tensor, labels: torch.Tensor) -> float:
    metric = F1Max()
    metric.update(scores, labels)
    return metric.compute().item()


def _points(x: torch.Tensor, y: torch.Tensor) -> Points:
    """Thin a rising curve out to so many points that a plot shows no difference."""
    chosen = np.unique(np.linspace(0, len(x) - 1, _CURVE_POINTS).round().astype(int))
    return [(round(float(x[i]), 5), round(float(y[i]), 5)) for i in chosen]
