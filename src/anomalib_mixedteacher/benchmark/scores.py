"""Figures of raw scores and maps, and a sentence for each that cannot be had.

anomalib's evaluator sees scores after normalisation, which its own models clamp to [0, 1]: everything beyond the range
seen in validation ties. Here scores are taken as the model gives them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import DirType
from anomalib.metrics.aupro import _AUPRO as AUPRO  # without the base that reads anomalib's batches
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_roc
from torchmetrics.utilities.compute import auc
from torchvision.tv_tensors import Mask

from anomalib_mixedteacher.benchmark.result import GOOD, Calibration, KeptPredictions, Points

PRO_LIMIT = 0.3  # share of false positive pixels up to which the region overlap is integrated; anomalib's and MVTec's
METRICS = ("image_AUROC", "image_AP", "pixel_AUROC", "PRO", "false_alarm_rate", "found_rate")
"""The last two are the shares of good and of defective test images from the calibrated threshold on."""

_FEW = 10  # defects below which one image moves the figures by a tenth and more
_CURVE_POINTS = 200
_KEPT_SIDE = 128


@dataclass
class Predictions:
    """Raw predictions of a test set.

    Attributes:
        scores: Image scores, ``(N,)``.
        maps: Anomaly maps, ``(N, H, W)``; ``(N, 0, 0)`` of a model that gives none, and of images of several sizes.
        labels: 1 for anomalous images, ``(N,)``.
        masks: 1 on defects, ``(N, H, W)``; ``(N, 0, 0)`` of images of several sizes.
        kinds: Name of each image's defect, ``"good"`` for none.
    """

    scores: torch.Tensor
    maps: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    kinds: list[str]


def image_kinds(samples: pd.DataFrame) -> list[str]:
    """Name the defects of a data set's images.

    Returns:
        ``"good"`` for each image without a defect; else its label, or its folder's name where a Folder labels alike
        what lies in several folders.
    """
    kinds = [str(getattr(label, "value", label)) for label in samples.label]
    folders = [Path(path).parent.name for path in samples.image_path]
    kinds = [folder if kind == DirType.ABNORMAL.value else kind for kind, folder in zip(kinds, folders, strict=True)]
    return [GOOD if index == 0 else kind for kind, index in zip(kinds, samples.label_index, strict=True)]


@torch.no_grad()
def predict(model: AnomalibModule, datamodule: AnomalibDataModule, split: str = "test") -> Predictions:
    """Predict a split of a datamodule that was set up. Images without masks count as good everywhere."""
    model.eval()
    transform = model.pre_processor.transform if isinstance(model.pre_processor, PreProcessor) else None
    scores, maps, labels, masks = [], [], [], []
    for batch in getattr(datamodule, f"{split}_dataloader")():
        mask = torch.zeros_like(batch.image[:, 0], dtype=torch.bool) if batch.gt_mask is None else batch.gt_mask
        images, mask = (batch.image, mask) if transform is None else transform(batch.image, Mask(mask))
        prediction: Any = model.model(images.to(model.device))
        scores.append(prediction.pred_score.flatten().cpu())
        found = torch.empty(len(mask), 0, 0) if prediction.anomaly_map is None else prediction.anomaly_map.cpu()
        maps.append(found.reshape(len(mask), *found.shape[-2:]))
        labels.append(batch.gt_label.int())
        masks.append(mask.reshape(len(mask), *mask.shape[-2:]).int())
    kinds = image_kinds(getattr(datamodule, f"{split}_data").samples)
    return Predictions(torch.cat(scores), stack(maps), torch.cat(labels), stack(masks), kinds)


def stack(batches: list[torch.Tensor]) -> torch.Tensor:
    """Put batches of maps or masks ``(B, H, W)`` into one; ``(N, 0, 0)`` where they have several sizes."""
    if len({batch.shape[1:] for batch in batches}) == 1:
        return torch.cat(batches)
    return torch.empty(sum(map(len, batches)), 0, 0)


def summarize(predictions: Predictions) -> dict[str, float]:
    """Compute AUROC and average precision of images, and AUROC of pixels.

    Returns:
        ``image_AUROC``, ``image_AP`` and ``pixel_AUROC``, each in ``[0, 1]``, but for those that cannot be had.
    """
    p, summary = predictions, {}
    if set(p.labels.tolist()) == {0, 1}:
        scores = to_unit_range(p.scores)
        summary["image_AUROC"] = binary_auroc(scores, p.labels).item()
        summary["image_AP"] = binary_average_precision(scores, p.labels).item()
    if p.masks.any() and p.maps.numel():
        summary["pixel_AUROC"] = binary_auroc(to_unit_range(p.maps).flatten(), p.masks.flatten()).item()
    return summary


def region_overlap(predictions: Predictions) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Compute the area under the per-region overlap (PRO), up to 30 % false positive pixels.

    Returns:
        The area divided by its limit, in ``[0, 1]``; the curve's false positive rates, and its overlaps.
    """
    pro = AUPRO(fpr_limit=PRO_LIMIT)
    pro.update(predictions.maps, predictions.masks)
    rates, overlaps = pro._compute()
    return (auc(rates, overlaps, reorder=True) / rates[-1]).item(), rates, overlaps


def to_unit_range(scores: torch.Tensor) -> torch.Tensor:
    """Scale finite raw scores or maps to ``[0, 1]`` in float64, without changing their order.

    torchmetrics takes anything beyond ``[0, 1]`` for logits and applies a sigmoid, which in float32 makes all scores
    above some 17 equal: AUROC, average precision and ROC of such scores are wrong.
    """
    scores = scores.double()
    low, high = scores.aminmax()
    return (scores - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)


def compute_metrics(
    predictions: Predictions, calibration: Calibration
) -> tuple[dict[str, float], dict[str, str], dict[str, Points]]:
    """Compute what can be computed.

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
