"""Combined distance of MSFD, and the distillation loss made of it."""

import torch

from anomalib_mixedteacher.components.distillation_model import DistillationLoss, Features
from anomalib_mixedteacher.components.maps import euclidean_distance, normalized_distance
from anomalib_mixedteacher.errors import ConfigurationError


def combined_distance(teacher: torch.Tensor, student: torch.Tensor, cosine_weight: float) -> torch.Tensor:
    r"""Weighted mean of the Euclidean and the cosine distance, position by position.

    .. math::  d_{ij} = (1 - w) \, \frac{1}{C} \left\lVert t_{ij} - s_{ij} \right\rVert_2^2
               + w \left( 1 - \cos(t_{ij}, s_{ij}) \right)

    The Euclidean part sees a feature's value, the cosine part its direction. That MSFD combines these two is stated in
    its abstract (Yao et al. 2021). Ours are the square, the division by the number of channels and the weights.

    Args:
        teacher: Teacher features of shape ``(B, C, H, W)``.
        student: Student features of the same shape.
        cosine_weight: Weight ``w`` of the cosine distance, in ``[0, 1]``.

    Returns:
        Distance of shape ``(B, H, W)``, non-negative, without bound unless ``w`` is 1.
    """
    value, direction = euclidean_distance(teacher, student), normalized_distance(teacher, student)
    return (1 - cosine_weight) * value + cosine_weight * direction


class MsfdLoss(DistillationLoss):
    """Mean :func:`combined_distance` over positions, then over levels and batch; without weights of the levels (ours).

    Raises:
        ConfigurationError: If the weight is not in ``[0, 1]``.
    """

    def __init__(self, cosine_weight: float = 0.5) -> None:
        super().__init__()
        if not 0 <= cosine_weight <= 1:
            msg = (
                f"cosine_weight must lie between 0 (Euclidean distance only) and 1 (cosine only), not {cosine_weight}."
            )
            raise ConfigurationError(msg)
        self.cosine_weight = cosine_weight

    def per_image(self, teacher: Features, student: Features) -> torch.Tensor:
        """Compute the loss of each image; see :class:`DistillationLoss`."""
        pairs = zip(teacher, student, strict=True)
        return torch.stack([combined_distance(t, s, self.cosine_weight).mean(dim=(1, 2)) for t, s in pairs]).mean(dim=0)
