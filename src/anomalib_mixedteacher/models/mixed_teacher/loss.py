"""Distillation loss of MixedTeacher."""

import torch

from anomalib_mixedteacher.components.distillation_model import DistillationLoss, Features
from anomalib_mixedteacher.components.maps import normalized_distance


class MixedTeacherLoss(DistillationLoss):
    r"""Mean distance between students' and teachers' features.

    .. math::  \mathcal{L} = \frac{1}{L} \sum_l \frac{1}{H_l W_l} \sum_{ij} d^l_{ij}

    with the distance :math:`d^l` of map :math:`l` (:func:`~anomalib_mixedteacher.components.maps.normalized_distance`).
    The official code sums over batch and teachers. A constant factor leaves Adam's steps as they are, so the learning
    rate means the same.
    """

    def per_image(self, teacher: Features, student: Features) -> torch.Tensor:
        """Compute the loss of each image; see :class:`DistillationLoss`."""
        maps = zip(teacher, student, strict=True)
        return torch.stack([normalized_distance(t, s).mean(dim=(1, 2)) for t, s in maps]).mean(dim=0)
