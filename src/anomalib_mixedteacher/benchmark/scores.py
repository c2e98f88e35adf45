"""Figures of raw scores and maps.

anomalib's evaluator sees scores after normalisation, which clamps them to [0, 1]: everything beyond the range seen in
validation ties, and its AUROC depends on the validation set. Here scores are taken as the model gives them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import DirType
from anomalib.metrics.aupro import _AUPRO as AUPRO  # without the base that reads anomalib's batches
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities.compute import auc
from torchvision.tv_tensors import Mask

from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.components.raw_scores import to_unit_range

PRO_LIMIT = 0.3  # share of false positive pixels up to which the region overlap is integrated; anomalib's and MVTec's
IMAGE_METRICS = ("image_AUROC", "image_AP")
PIXEL_METRICS = ("pixel_AUROC", "PRO")


@dataclass
class Predictions:
    """Raw predictions of a test set.

    Attributes:
        scores: Image scores, ``(N,)``.
        maps: Anomaly maps, ``(N, H, W)``; ``(N, 0, 0)`` of a model that gives none.
        labels: 1 for anomalous images, ``(N,)``.
        masks: 1 on defects, ``(N, H, W)``.
        kinds: Name of each image's defect, ``"good"`` for none.
    """

    scores: torch.Tensor
    maps: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    kinds: list[str]

    @property
    def lacking(self) -> dict[str, str]:
        """A sentence for each of the metrics that cannot be computed."""
        good, bad = bool((self.labels == 0).any()), bool((self.labels == 1).any())
        image = "" if good and bad else f"The test set has no {'defective' if good else 'good'} images."
        pixel = (
            "The test set has no defective images."
            if not bad
            else "The test set has no masks."
            if not self.masks.any()
            else ""
            if self.maps.numel()
            else "The model gives no anomaly maps."
        )
        reasons = dict.fromkeys(IMAGE_METRICS, image) | dict.fromkeys(PIXEL_METRICS, pixel)
        return {name: reason for name, reason in reasons.items() if reason}


def image_kinds(samples: pd.DataFrame) -> list[str]:
    """Name the defects of a data set's images.

    Args:
        samples: The ``samples`` of one of anomalib's data sets, whose labels of good images have many names.

    Returns:
        ``"good"`` for each image without a defect; else its label, or its folder's name where a Folder labels alike
        what lies in several folders.
    """
    rows = zip(samples.label, samples.label_index, samples.image_path, strict=True)
    return [
        GOOD
        if index == 0
        else Path(path).parent.name
        if label == DirType.ABNORMAL
        else str(getattr(label, "value", label))
        for label, index, path in rows
    ]


@torch.no_grad()
def predict(model: AnomalibModule, datamodule: AnomalibDataModule) -> Predictions:
    """Predict a datamodule's test set. Images without masks count as good everywhere.

    Args:
        model: A trained model.
        datamodule: A datamodule that was set up.

    Returns:
        The raw predictions.
    """
    model.eval()
    transform = model.pre_processor.transform if isinstance(model.pre_processor, PreProcessor) else None
    scores, maps, labels, masks = [], [], [], []
    for batch in datamodule.test_dataloader():
        mask = torch.zeros_like(batch.image[:, 0], dtype=torch.bool) if batch.gt_mask is None else batch.gt_mask
        images, mask = (batch.image, mask) if transform is None else transform(batch.image, Mask(mask))
        prediction = model.model(images.to(model.device))
        scores.append(prediction.pred_score.flatten().cpu())
        maps.append(_maps_of(prediction).cpu())
        labels.append(batch.gt_label.int())
        masks.append(mask.reshape(len(mask), *mask.shape[-2:]).int())
    kinds = image_kinds(datamodule.test_data.samples)
    return Predictions(torch.cat(scores), torch.cat(maps), torch.cat(labels), torch.cat(masks), kinds)


def _maps_of(prediction: Any) -> torch.Tensor:
    if prediction.anomaly_map is None:
        return torch.empty(prediction.pred_score.numel(), 0, 0)
    maps: torch.Tensor = prediction.anomaly_map
    return maps.reshape(len(maps), *maps.shape[-2:])


def summarize(predictions: Predictions) -> dict[str, float]:
    """Compute area under the ROC curve and average precision of images, and area under the ROC curve of pixels.

    Args:
        predictions: Raw predictions.

    Returns:
        ``image_AUROC``, ``image_AP`` and ``pixel_AUROC``, each in ``[0, 1]``, but for those that cannot be had.
    """
    p, summary = predictions, {}
    if "image_AUROC" not in p.lacking:
        scores = to_unit_range(p.scores)
        summary["image_AUROC"] = binary_auroc(scores, p.labels).item()
        summary["image_AP"] = binary_average_precision(scores, p.labels).item()
    if "pixel_AUROC" not in p.lacking:
        summary["pixel_AUROC"] = binary_auroc(to_unit_range(p.maps).flatten(), p.masks.flatten()).item()
    return summary


def region_overlap(predictions: Predictions) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Compute the area under the per-region overlap (PRO), up to 30 % false positive pixels.

    Args:
        predictions: Raw predictions of a test set with masks.

    Returns:
        The area divided by its limit, in ``[0, 1]``; the curve's false positive rates, and its overlaps.
    """
    pro = AUPRO(fpr_limit=PRO_LIMIT)
    pro.update(predictions.maps, predictions.masks)
    rates, overlaps = pro._compute()
    return (auc(rates, overlaps, reorder=True) / rates[-1]).item(), rates, overlaps
