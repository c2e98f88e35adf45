"""AUROC of raw scores of any size, against a count of pairs: torchmetrics alone would tie large ones."""

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from anomalib_mixedteacher.benchmark.scores import to_unit_range


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1, 30), (1000, -500), (1e-9, 0), (1e30, 0)])
def test_auroc_does_not_depend_on_the_scores_scale(scale, shift):
    labels = torch.tensor([0, 1] * 10)
    scores = (torch.rand(20) + 0.3 * labels) * scale + shift
    pairs = [float(bad > good) for bad in scores[labels == 1] for good in scores[labels == 0]]
    assert binary_auroc(to_unit_range(scores), labels).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    if shift == 30:
        assert binary_auroc(scores, labels) == 0.5  # why it matters


def test_order_and_range():
    scores = torch.tensor([20.0, 20.0 + 2e-6, -7.0])
    unit = to_unit_range(scores)
    assert unit.argsort().tolist() == [2, 0, 1]
    assert (unit.min(), unit.max()) == (0, 1)
    assert to_unit_range(torch.full((3,), 5.0)).tolist() == [0, 0, 0]
