"""What the losses of every distillation detector share: a value for each image, and its mean over the batch."""

import torch
from torch import nn

from anomalib_mixedteacher.components.distillation_model import Features


class DistillationLoss(nn.Module):
    """Mean distance between students' and teachers' features, for each teacher on its own.

    A model defines :meth:`distance`, or :meth:`per_image` where its loss is no mean over positions.
    """

    def distance(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """Compute the distance at each position of a map.

        Args:
            teacher: Teacher features of shape ``(B, C, H, W)``.
            student: Student features of the same shape.

        Returns:
            Distance of shape ``(B, H, W)``, non-negative.
        """
        raise NotImplementedError

    def per_image(self, teacher: Features, student: Features) -> dict[str, torch.Tensor]:
        """Compute the loss of each image: the distance's mean over positions, then over maps.

        Args:
            teacher: Feature maps of each teacher by name, each of shape ``(B, C, H, W)``.
            student: Feature maps of each student, same names and shapes.

        Returns:
            Loss of shape ``(B,)`` by teacher name, non-negative.
        """
        losses = {}
        for name, maps in teacher.items():
            pairs = zip(maps, student[name], strict=True)
            losses[name] = torch.stack([self.distance(t, s).mean(dim=(1, 2)) for t, s in pairs]).mean(dim=0)
        return losses

    def forward(self, teacher: Features, student: Features) -> dict[str, torch.Tensor]:
        """Compute the loss of a batch.

        Args:
            teacher: See :meth:`per_image`.
            student: See :meth:`per_image`.

        Returns:
            Mean loss of the images by teacher name, scalars. The students share no parameters, so training on the sum
            trains each on its own loss.
        """
        return {name: loss.mean() for name, loss in self.per_image(teacher, student).items()}
