"""Figures of raw scores and maps.

anomalib's evaluator sees scores after normalisation, which its own models clamp to [0, 1]: everything beyond the range
seen in validation ties. Here scores are taken as the model gives them.
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

    Args:
        samples: The ``samples`` of one of anomalib's data sets, whose labels of good images have many names.

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
    """Compute area under the ROC curve and average precision of images, and area under the ROC curve of pixels.

    Args:
        predictions: Raw predictions.

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

    Args:
        predictions: Raw predictions of a test set with masks.

    Returns:
        The area divided by its limit, in ``[0, 1]``; the curve's false positive rates, and its overlaps.
    """
    pro = AUPRO(fpr_limit=PRO_LIMIT)
    pro.update(predictions.maps, predictions.masks)
    rates, overlaps = pro._compute()
    return (auc(rates, overlaps, reorder=True) / rates[-1]).item(), rates, overlaps
