"""A cell's figures from its raw predictions, and a sentence for each that cannot be had."""

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d
from torchmetrics.functional.classification import binary_roc

from anomalib_mixedteacher.benchmark.result import GOOD, Calibration, KeptPredictions, Points
from anomalib_mixedteacher.benchmark.scores import Predictions, region_overlap, summarize
from anomalib_mixedteacher.components.raw_scores import to_unit_range

METRICS = ("image_AUROC", "image_AP", "pixel_AUROC", "PRO", "false_alarm_rate", "found_rate")
"""The last two are the shares of good and of defective test images from the calibrated threshold on."""

_FEW = 10  # defects below which one image moves the figures by a tenth and more
_CURVE_POINTS = 200
_KEPT_SIDE = 128


def compute_metrics(
    predictions: Predictions, calibration: Calibration
) -> tuple[dict[str, float], dict[str, str], dict[str, Points]]:
    """Compute what can be computed.

    Args:
        predictions: Raw predictions of a test set.
        calibration: Thresholds in raw scores.

    Returns:
        Metrics; for each of :data:`METRICS` that is missing, why; and the curves. See :class:`~.result.Result`.
    """
    p = predictions
    metrics, curves = summarize(p), {}
    if "image_AUROC" in metrics:
        curves["roc"] = _points(*binary_roc(to_unit_range(p.scores), p.labels)[:2])
    if "pixel_AUROC" in metrics:
        metrics["PRO"], *curve = region_overlap(p)
        curves["pro"] = _points(*curve)
    alarms = count_alarms(p, calibration)
    for name, of_good in (("false_alarm_rate", True), ("found_rate", False)):
        if counts := [count for kind, count in alarms.items() if (kind == GOOD) == of_good]:
            metrics[name] = sum(above for above, _ in counts) / sum(images for _, images in counts)
    missing = {name: _reason(name, p, calibration) for name in METRICS if name not in metrics}
    return metrics, missing, curves


def _reason(metric: str, p: Predictions, calibration: Calibration) -> str:
    """Say why a metric cannot be had."""
    if metric in METRICS[-2:] and calibration.image is None:
        return "There were no good validation images to set a threshold on."
    if metric != "false_alarm_rate" and not p.labels.any():
        return "The test set has no defective images."
    if metric not in {"pixel_AUROC", "PRO"}:
        return "The test set has no good images."
    if not p.masks.numel():
        return "The test images have several sizes."
    return "The model gives no anomaly maps." if p.masks.any() else "The test set has no masks."


def notes(predictions: Predictions, calibration: Calibration, alarm_rate: float) -> list[str]:
    """Say what a reader must know about the test set before trusting the figures; see :func:`compute_metrics`."""
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
    """Count the images from the calibrated threshold on, and all images, by kind; empty without a threshold."""
    if calibration.image is None:
        return {}
    above = (predictions.scores >= calibration.image).tolist()
    kinds = sorted(set(predictions.kinds), key=lambda kind: (kind != GOOD, kind))
    pairs = list(zip(predictions.kinds, above, strict=True))
    return {kind: (sum(alarm for of, alarm in pairs if of == kind), predictions.kinds.count(kind)) for kind in kinds}


def keep(predictions: Predictions, paths: list[str], good: torch.Tensor, with_maps: bool) -> KeptPredictions:
    """Make predictions small enough to keep: maps, if wanted, and masks of at most 128 pixels a side."""
    height, width = predictions.masks.shape[-2:]
    size = min(height, _KEPT_SIDE), min(width, _KEPT_SIDE)
    maps = predictions.maps.float()
    maps = maps[:, None] if with_maps and maps.numel() else maps.new_zeros(len(maps), 1, 0, 0)
    maps = adaptive_avg_pool2d(maps, size) if maps.numel() else maps
    masks = predictions.masks[:, None].float()
    masks = adaptive_max_pool2d(masks, size) if masks.numel() else masks
    scores, known = predictions.scores.float().numpy(), good.float().numpy()
    return KeptPredictions(paths, predictions.kinds, scores, maps[:, 0].numpy(), masks[:, 0].numpy() > 0, known)


def _points(x: torch.Tensor, y: torch.Tensor) -> Points:
    """Thin a rising curve out to so many points that a plot shows no difference."""
    chosen = np.unique(np.linspace(0, len(x) - 1, _CURVE_POINTS).round().astype(int))
    return [(round(float(x[i]), 5), round(float(y[i]), 5)) for i in chosen]
