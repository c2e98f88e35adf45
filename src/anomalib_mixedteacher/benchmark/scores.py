"""AUROC and PRO from raw scores and maps.

anomalib's evaluator sees scores after normalisation, which clamps them to [0, 1]: everything beyond the range seen in
validation ties, and its AUROC depends on the validation set. Here scores are taken as the model gives them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from anomalib.data import AnomalibDataModule
from anomalib.metrics.aupro import _AUPRO as AUPRO  # without the base that reads anomalib's batches
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from torchmetrics.functional.classification import binary_auroc
from torchvision.tv_tensors import Mask

from anomalib_mixedteacher.benchmark.result import GOOD
from anomalib_mixedteacher.components.raw_scores import to_unit_range

PRO_LIMIT = 0.3  # share of false positive pixels up to which the region overlap is integrated; anomalib's and MVTec's


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


def image_kinds(samples: pd.DataFrame) -> list[str]:
    """Name the defects of a data set's images.

    Args:
        samples: The ``samples`` of one of anomalib's data sets, whose labels of good images have many names.

    Returns:
        ``"good"`` for each image without a defect, and the label of each other one.
    """
    pairs = zip(samples.label, samples.label_index, strict=True)
    return [GOOD if index == 0 else str(getattr(label, "value", label)) for label, index in pairs]


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


def summarize(predictions: Predictions, pool: Sequence[str] = ()) -> dict[str, float]:
    """Compute AUROC over images, over pixels, and over images for each kind of defect.

    Args:
        predictions: What :func:`predict` returned.
        pool: Kinds of defect to take together in one more image AUROC.

    Returns:
        ``image_AUROC``; ``pixel_AUROC`` where there are masks and maps; the pool's (named by its kinds, joined by
        ``+``) and one entry per kind of defect, each in ``[0, 1]``.
    """
    p = predictions
    scores = to_unit_range(p.scores)
    result = {"image_AUROC": binary_auroc(scores, p.labels).item()}
    if p.masks.any() and p.maps.numel():
        result["pixel_AUROC"] = binary_auroc(to_unit_range(p.maps).flatten(), p.masks.flatten()).item()
    groups = {"+".join(pool): set(pool)} if pool else {}
    groups |= {kind: {kind} for kind in sorted(set(p.kinds) - {GOOD})}
    for name, kinds in groups.items():
        chosen = torch.tensor([kind == GOOD or kind in kinds for kind in p.kinds])
        result[name] = binary_auroc(scores[chosen], p.labels[chosen]).item()
    return result


def region_overlap(predictions: Predictions) -> float:
    """Compute the area under the per-region overlap (PRO), integrated up to 30 % false positive pixels.

    Args:
        predictions: What :func:`predict` returned, of a test set with masks.

    Returns:
        The area divided by its limit, in ``[0, 1]``.
    """
    pro = AUPRO(fpr_limit=PRO_LIMIT)
    pro.update(predictions.maps, predictions.masks)
    return pro.compute().item()
