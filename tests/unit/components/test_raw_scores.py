"""AUROC of raw scores of any size: torchmetrics alone would tie large ones."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from anomalib_mixedteacher.benchmark.evaluation import compute_metrics
from anomalib_mixedteacher.benchmark.result import Calibration
from anomalib_mixedteacher.benchmark.scores import Predictions, summarize
from anomalib_mixedteacher.components.raw_scores import to_unit_range
from anomalib_mixedteacher.export.openvino import _image_auroc


def loop_auroc(scores, labels):
    good, bad = scores[labels == 0], scores[labels == 1]
    return np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good])


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1, 30), (1000, -500), (1e-9, 0), (1e30, 0)])
def test_no_metric_depends_on_the_scores_scale(scale, shift):
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 10)
    masks = labels[:, None, None].expand(-1, 4, 4).int()
    maps = torch.rand(20, 4, 4, generator=generator) + 0.3 * masks
    reference = maps * scale + shift
    scores = reference.amax((1, 2))
    p = Predictions(scores, reference, labels, masks, ["good", "hole"] * 10)
    summary = summarize(p)
    metrics, _, curves = compute_metrics(p, Calibration(None, None, 0, 0.05))
    image = loop_auroc(scores.numpy(), labels.numpy())
    pixel = loop_auroc(reference.flatten().numpy(), masks.flatten().numpy())
    assert summary["image_AUROC"] == metrics["image_AUROC"] == pytest.approx(image, abs=1e-6)
    assert summary["pixel_AUROC"] == metrics["pixel_AUROC"] == pytest.approx(pixel, abs=1e-6)
    assert summary["hole"] == pytest.approx(image, abs=1e-6)
    x, y = zip(*curves["roc"], strict=True)
    assert np.trapezoid(y, x) == pytest.approx(image, abs=1e-3)


def test_the_watched_auroc_of_quantisation_is_exact_too():
    class Batch:
        def __init__(self, label):
            self.gt_label = torch.tensor(label)

    values = [(40.0, 0), (41.0, 1), (42.0, 0), (43.0, 1)]
    items = [(score, Batch(label)) for score, label in values]
    found = _image_auroc(lambda score: {"pred_score": np.float32([score])}, items)
    assert found == pytest.approx(0.75)
    assert binary_auroc(torch.tensor([s for s, _ in values]), torch.tensor([0, 1, 0, 1])) == 0.5  # why it matters


def test_order_and_range():
    scores = torch.tensor([20.0, 20.0 + 2e-6, -7.0])
    unit = to_unit_range(scores)
    assert unit.argsort().tolist() == [2, 0, 1]
    assert (unit.min(), unit.max()) == (0, 1)
    assert to_unit_range(torch.full((3,), 5.0)).tolist() == [0, 0, 0]
