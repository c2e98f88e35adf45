"""Distillation loss of MixedTeacher."""

import torch
from torch import nn

from anomalib_mixedteacher.components.distance import normalized_distance
from anomalib_mixedteacher.components.distillation_model import Features


class MixedTeacherLoss(nn.Module):
    """Mean distance between a student's and its teacher's features, for each teacher on its own.

    Per layer the :func:`~anomalib_mixedteacher.components.normalized_distance` is averaged over positions, then over
    layers and batch. The official code sums over the batch instead. Adam divides a gradient by its own running
    magnitude, so a constant factor leaves the step, and with it the meaning of the learning rate, unchanged (up to
    Adam's epsilon); and the value can be compared between batch sizes.
    """

    def per_image(self, teacher: Features, student: Features) -> dict[str, torch.Tensor]:
        """Compute the loss of each image.

        Args:
            teacher: Feature maps of each teacher by name, each of shape ``(B, C, H, W)``.
            student: Feature maps of each student, same names and shapes.

        Returns:
            Loss of shape ``(B,)`` by teacher name, in ``[0, 2]``.
        """
        losses = {}
        for name, maps in teacher.items():
            pairs = zip(maps, student[name], strict=True)
            losses[name] = torch.stack([normalized_distance(t, s).mean(dim=(1, 2)) for t, s in pairs]).mean(dim=0)
        return losses

    def forward(self, teacher: Features, student: Features) -> dict[str, torch.Tensor]:
        """Compute the loss of a batch.

        Args:
            teacher: Feature maps of each teacher by name, each of shape ``(B, C, H, W)``.
            student: Feature maps of each student, same names and shapes.

        Returns:
            Scalar by teacher name, in ``[0, 2]``. The students share no parameters, so training on the sum trains
            each on its own loss.
        """
        return {name: loss.mean() for name, loss in self.per_image(teacher, student).items()}
