"""Raw anomaly scores for torchmetrics."""

import torch


def to_unit_range(scores: torch.Tensor) -> torch.Tensor:
    """Scale raw scores to ``[0, 1]`` without changing their order.

    torchmetrics takes anything beyond ``[0, 1]`` for logits and applies a sigmoid, which in float32 makes all scores
    above some 17 equal: AUROC, average precision and ROC of such scores are wrong.

    Args:
        scores: Finite scores or anomaly maps of any shape.

    Returns:
        Scores of the same shape in float64, fine enough to keep float32's differences apart.
    """
    scores = scores.double()
    low, high = scores.aminmax()
    return (scores - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
