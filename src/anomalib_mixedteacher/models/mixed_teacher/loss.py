"""Distillation loss of MixedTeacher."""

import torch

from anomalib_mixedteacher.components.distance import normalized_distance
from anomalib_mixedteacher.components.distillation_loss import DistillationLoss


class MixedTeacherLoss(DistillationLoss):
    """Mean distance between a student's and its teacher's features, for each teacher on its own.

    Per layer the :func:`~anomalib_mixedteacher.components.normalized_distance` is averaged over positions, then over
    layers and batch. The official code sums over the batch instead. Adam divides a gradient by its own running
    magnitude, so a constant factor leaves the step, and with it the meaning of the learning rate, unchanged (up to
    Adam's epsilon); and the value can be compared between batch sizes.
    """

    def distance(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """Compute the :func:`~anomalib_mixedteacher.components.normalized_distance` at each position."""
        return normalized_distance(teacher, student)
